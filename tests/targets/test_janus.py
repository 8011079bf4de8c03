"""Janus draws the codes of its own `generate`, drafted or not, alone or in a batch."""

import pytest
import torch
from tiny import OracleDrafter, drafter
from tiny_janus import BOI, PROMPTS, SIDE, janus

from mmspec.drafters.base import Drafter
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.msd import MsdDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.janus import JanusTarget, janus_twin

COUNT = SIDE**2


@pytest.fixture(scope="module")
def target() -> JanusTarget:
    return JanusTarget(janus())


def guided(target: JanusTarget, rows: list[list[int]], guidance: float) -> Prompts:
    """Prompts, with their twins where there is guidance."""
    return Prompts(rows, [janus_twin(janus(), row) for row in rows] if guidance != 1 else None, guidance)


def drawn(target: JanusTarget, guidance: float, temperature: float, rows=PROMPTS, seed=5, drafted=None) -> list:
    sampling = SamplingOptions(temperature)
    prompts = guided(target, rows, guidance)
    return generate(target, prompts, len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seed).tokens


def all_drafters(target: JanusTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(3)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


@torch.inference_mode()
def stepwise(target: JanusTarget, prompt: list[int], guidance: float, seed: int | None) -> list[int]:
    """The model's own forward over the whole sequence, again for every code; the noise of `seed`, or none."""
    model = janus()
    rows = torch.tensor([prompt, janus_twin(janus(), prompt)])
    vectors, codes = model.get_input_embeddings()(rows), []
    noise = Noise([seed or 0], target.vocabulary_size, "cpu", seed is None)
    for place in range(COUNT):
        hidden = model.model.language_model(inputs_embeds=vectors, use_cache=False).last_hidden_state[:, -1]
        conditional, unconditional = model.model.generation_head(hidden)
        scores = unconditional + guidance * (conditional - unconditional)
        codes.append(int((scores + noise.gumbel([place], 1)[0, 0]).argmax()))
        new = model.prepare_embeddings_for_image_generation(torch.tensor([codes[-1:]] * 2))
        vectors = torch.cat([vectors, new], 1)
    return codes


@pytest.mark.parametrize("guidance", [5.0, 1.5])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_equals_generate(target: JanusTarget, prompt: list[int], guidance: float) -> None:
    """equality: greedy codes are those of the model's own `generate`, with any drafter (fp64)."""
    ids = torch.tensor([prompt])
    options = dict(generation_mode="image", do_sample=False, guidance_scale=guidance, max_length=len(prompt) + COUNT)
    wanted = janus().generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()
    assert len(set(wanted[0])) > 4
    for drafted in all_drafters(target, wanted):
        assert drawn(target, guidance, 0.0, [prompt], drafted=drafted) == wanted


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_tokens_are_those_of_the_own_forward(target: JanusTarget, guidance: float) -> None:
    """equality: greedy, and at T = 1 with the same noise, also without guidance, where `generate` fails (fp64)."""
    for row, prompt in enumerate(PROMPTS):
        assert drawn(target, guidance, 0.0, [prompt]) == [stepwise(target, prompt, guidance, None)]
        assert drawn(target, guidance, 1.0, [prompt], 5 + row) == [stepwise(target, prompt, guidance, 5 + row)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_drafts_and_batches_equal_plain_decoding(target: JanusTarget, guidance: float, temperature: float) -> None:
    """equality: three rows of different length give what each gives alone, drafted or not (fp64)."""
    plain = [drawn(target, guidance, temperature, [row], 5 + i)[0] for i, row in enumerate(PROMPTS)]
    assert len({str(row) for row in plain}) == 3
    for drafted in all_drafters(target, plain):
        assert drawn(target, guidance, temperature, drafted=drafted) == plain
    for number, drafted in enumerate(all_drafters(target, plain[:1])):
        assert drawn(target, guidance, temperature, PROMPTS[:1], drafted=drafted) == plain[:1], number


def test_the_benchmark_draws_with_generate(target: JanusTarget) -> None:
    """equality: what the benchmark measures as transformers gives, greedy, the same codes."""
    from mmspec.bench.suite import TransformersBaseline

    prompts = guided(target, PROMPTS[:1], 5.0)
    found = TransformersBaseline(target, temperature=0.0)(prompts, COUNT, 0)
    assert found.tokens == drawn(target, 5.0, 0.0, PROMPTS[:1])
    assert len(TransformersBaseline(target)(prompts, COUNT, 0).tokens[0]) == COUNT


def test_ids_of_text_are_no_codes(target: JanusTarget) -> None:
    """Text ids and codes share numbers: tokens of prompts are negative, and each has its own vector."""
    tokens = torch.tensor(target.tokens([8, 60]))
    assert (tokens < 0).all()
    assert torch.equal(target.embed(tokens), janus().get_input_embeddings()(torch.tensor([8, 60])))
    codes = torch.tensor([8, 39])
    assert torch.equal(target.embed(codes), janus().prepare_embeddings_for_image_generation(codes))


def test_the_prompt_matters(target: JanusTarget) -> None:
    """negative control: another prompt, or its pads not attended, other codes."""
    prompt = PROMPTS[0]
    right = drawn(target, 5.0, 0.0, [prompt])
    short = Prompts([prompt], [[prompt[0], BOI]], 5.0)
    wrong = generate(target, short, 1, Stop(COUNT), sampling=SamplingOptions(0.0)).tokens
    assert right != wrong and right != drawn(target, 5.0, 0.0, PROMPTS[1:2])


def test_the_probe_sees_a_wrong_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: read through the embedding of text, the model is refused."""
    monkeypatch.setattr(JanusTarget, "decoder_inputs", lambda self, nodes: {"input_ids": nodes.abs()})
    with pytest.raises(MmspecError, match="does not give its own logits"):
        JanusTarget(janus())


def test_what_does_not_fit_is_refused(target: JanusTarget) -> None:
    """Other models, drafters that need one matrix, and Janus as a language model."""
    from tiny import llama

    with pytest.raises(MmspecError, match="LlamaForCausalLM is no Janus"):
        JanusTarget(llama())
    with pytest.raises(MmspecError, match="output head has two layers"):
        HawkPathDrafter.build(target, width=16, inner=32, depth=2)
    with pytest.raises(MmspecError, match="output head has two layers"):
        MsdDrafter(hidden_size=32, intermediate_size=48, heads=4, kv_heads=2).head(target)
    with pytest.raises(MmspecError, match="may generate by another head"):
        CausalTarget(janus())
