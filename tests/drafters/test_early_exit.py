"""The target's first layers as drafter."""

import copy

import pytest
import torch
from text_families import text_family
from tiny import TEXTS, image_target, llama, plain, prompts, text_target

from mmspec import drafters
from mmspec.drafters.early_exit import EarlyExitDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import target_of

LENGTH = 40


def skipping() -> CausalTarget:
    """A target whose second layer adds nothing, so that the first says all."""
    model = copy.deepcopy(llama())
    with torch.no_grad():
        for weight in (model.model.layers[1].self_attn.o_proj.weight, model.model.layers[1].mlp.down_proj.weight):
            weight.zero_()
    return CausalTarget(model)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_first_layers_that_say_all(temperature: float) -> None:
    """Every guess is right, coupled by the noise of the samples, and rounds go as deep as they may."""
    target, sampling, guesser = skipping(), SamplingOptions(temperature), EarlyExitDrafter()
    out = generate(target, prompts(), 3, Stop(LENGTH), guesser, sampling=sampling, seeds=2)
    assert out.tokens == plain(target, LENGTH, sampling, 2)
    assert out.stats.mean_acceptance_length > 4 and guesser.choice() == (0, 5)


def test_first_layers_that_say_nothing() -> None:
    """It stops drafting, but where the number of nodes is fixed."""
    target = text_target()
    guesser = EarlyExitDrafter(depth=3)
    out = generate(target, prompts(TEXTS[:1]), 1, Stop(200), guesser, seeds=2)
    assert out.tokens == plain(target, 200, seed=2, texts=TEXTS[:1])
    guesser._rates = [0.0 for _ in guesser._rates]
    assert guesser.choice()[1] == 0
    guesser.nodes = 4
    assert guesser.choice()[1] == 1


def test_the_target_is_left_as_it_is() -> None:
    """No hooks, layers or configuration of it change."""
    target = text_target()
    layers, config = len(target.decoder.layers), copy.deepcopy(target.decoder.config)
    generate(target, prompts(), 3, Stop(8), EarlyExitDrafter(), seeds=2)
    assert len(target.decoder.layers) == layers and target.decoder.config.to_dict() == config.to_dict()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.decoder.modules())


def test_chains_and_samples() -> None:
    target = skipping()
    target.deterministic = True
    assert generate(target, prompts(), 3, Stop(12), EarlyExitDrafter(), seeds=2).tokens == plain(target, 12, seed=2)
    out = generate(image_target(), prompts(), 3, Stop(8), EarlyExitDrafter(), rule="rejection", seeds=2)
    assert {len(row) for row in out.tokens} == {8}


@pytest.mark.parametrize("family", ["Gemma 2", "Qwen2", "Phi-3"])
def test_families(family: str) -> None:
    """Windows of layers, caps and biases stay those of the layers that draft."""
    target = target_of(text_family(family))
    wanted = plain(target, 16, seed=2)
    assert generate(target, prompts(), 3, Stop(16), EarlyExitDrafter(), seeds=2).tokens == wanted


def test_what_has_no_such_layers_is_refused() -> None:
    with pytest.raises(MmspecError, match="no stack of attention layers"):
        generate(target_of(text_family("Falcon-H1")), prompts(), 3, Stop(8), EarlyExitDrafter())
    with pytest.raises(MmspecError, match="shares of the layers"):
        EarlyExitDrafter(exits=(0.5, 1.0))
    assert "del" not in drafters.usable(None) and drafters.load("del", None, text_target()).name == "del"
