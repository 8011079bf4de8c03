"""The target's first layers as drafter."""

import copy

import pytest
import torch
from text_families import text_family
from tiny import TEXTS, image_target, llama, plain, prompts, text_target

from mmspec import drafters
from mmspec.drafters.early_exit import FIRST, EarlyExitDrafter
from mmspec.engine.cost import Cost
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


def test_first_layers_that_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops drafting by itself, tries again later, and drafts where the number of nodes is fixed."""
    target = text_target()
    monkeypatch.setattr("mmspec.drafters.early_exit.CausalTarget.first_layers", lambda self, count: foreign())
    guesser, sizes = EarlyExitDrafter(depth=3), []

    def seen(state, tree, gumbel_scores, accepted) -> None:
        sizes.append(tree.size)

    out = generate(target, prompts(TEXTS[:1]), 1, Stop(300), guesser, seeds=2, on_accept=seen)
    assert out.tokens == plain(target, 300, seed=2, texts=TEXTS[:1])
    silent = [size == 1 for size in sizes]
    assert any(silent[:100]) and not all(silent[silent.index(True) :])
    guesser._rates = [0.0 for _ in guesser._rates]
    guesser.nodes = 4
    assert guesser.choice()[1] == 1


def foreign() -> CausalTarget:
    """Another model's layers."""
    return CausalTarget(llama(seed=9))


def test_a_tree_that_is_cut_is_no_miss() -> None:
    """Where fewer nodes are verified than were drafted, what was not verified says nothing."""
    target, guesser = skipping(), EarlyExitDrafter()
    guesser.cost = Cost([1, 2, 3, 64], [1.0, 1.0, 9.0, 99.0])
    generate(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), guesser, sampling=SamplingOptions(0.0), seeds=2)
    assert guesser._rates[0] > FIRST


def test_the_target_is_left_as_it_is() -> None:
    """No hooks, layers or configuration of it change."""
    target = text_target()
    layers, config = len(target.decoder.layers), copy.deepcopy(target.decoder.config)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in target.decoder.modules()]
    generate(target, prompts(), 3, Stop(8), EarlyExitDrafter(), seeds=2)
    assert len(target.decoder.layers) == layers and target.decoder.config.to_dict() == config.to_dict()
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in target.decoder.modules()] == hooks


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
    for family in ("Gemma 3n", "Gemma 4"):
        with pytest.raises(MmspecError, match="no stack of attention layers"):
            generate(target_of(text_family(family)), prompts(), 3, Stop(8), EarlyExitDrafter())
    with pytest.raises(MmspecError, match="shares of the layers"):
        EarlyExitDrafter(exits=(0.5, 1.0))
    assert "del" not in drafters.usable(None) and drafters.load("del", None, text_target()).name == "del"
