"""CSM says the codes of its own `generate`, drafted or not, alone or in a batch, with recordings or without."""

import pytest
import torch
import transformers as hub
from tiny import OracleDrafter, drafter, llama
from tiny_csm import AUDIO, AUDIO_EOS, BOOKS, FRAME, PROMPTS, csm

from mmspec import reference
from mmspec.drafters.base import Drafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.csm import CsmTarget
from mmspec.targets.registry import target_of
from mmspec.targets.vision_language import VisualPrompts

COUNT = 4 * BOOKS


@pytest.fixture(scope="module")
def target() -> CsmTarget:
    return CsmTarget(csm())


def recorded(seed: int, frames: int) -> dict[str, torch.Tensor]:
    """A recording of so many frames of the codec."""
    samples = torch.randn(1, 1, FRAME * frames, generator=torch.Generator().manual_seed(seed)).double()
    return {"input_values": samples, "input_values_cutoffs": torch.tensor([[FRAME * frames]])}


def prompts(rows: list[int], heard: bool = False) -> Prompts:
    """Texts; with recordings, each after one of its own length."""
    texts = [PROMPTS[row] for row in rows]
    if not heard:
        return Prompts(texts)
    ids = [[*PROMPTS[0], *[AUDIO] * (3 + row), AUDIO_EOS, *text] for row, text in zip(rows, texts)]
    return VisualPrompts(ids, images=[recorded(row, 3 + row) for row in rows])


def said(target: CsmTarget, rows: list[int], heard: bool, temperature: float, drafted: Drafter | None = None) -> list:
    """What our loop says; row i has the seed 5 + i, wherever it is."""
    sampling, seeds = SamplingOptions(temperature), [5 + row for row in rows]
    return generate(
        target, prompts(rows, heard), len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seeds
    ).tokens


def all_drafters(target: CsmTarget, answers: list[list[int]]) -> list[Drafter]:
    """Drafters that need no training, and random trees that hold many right answers."""
    oracles = [OracleDrafter(answers, target.vocabulary_size, seed=seed) for seed in range(2)]
    return [*(drafter(name, target) for name in ("none", "jacobi", "lookup")), *oracles]


@torch.inference_mode()
def stepwise(target: CsmTarget, row: int, heard: bool, temperature: float) -> list[int]:
    """The model's own forward over the whole sequence, again for every code."""
    given, codes = prompts([row], heard), [0] * COUNT
    inputs = given.images[0] if isinstance(given, VisualPrompts) else {}
    noise = Noise([5 + row], target.vocabulary_size, "cpu", temperature == 0)
    for place in range(COUNT):
        frames = torch.tensor(codes).view(-1, BOOKS)[: place // BOOKS + 1].tolist()
        logits = target.own_frame(given.conditional[0], frames, inputs)[place % BOOKS]
        codes[place] = int((logits + noise.gumbel([place], 1)[0, 0]).argmax())
    return codes


@pytest.mark.parametrize("heard", [False, True])
def test_greedy_equals_generate(target: CsmTarget, heard: bool) -> None:
    """equality: greedy codes are those of the model's own `generate`, with any drafter (fp64)."""
    for row in range(3):
        given = prompts([row], heard)
        ids = torch.tensor(given.conditional)
        options = dict(max_new_tokens=COUNT // BOOKS, do_sample=False, depth_decoder_do_sample=False)
        options |= given.images[0] if isinstance(given, VisualPrompts) else {}
        wanted = csm().generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options).flatten(1).tolist()
        assert len(set(wanted[0])) > 6
        assert said(target, [row], heard, 0.0) == wanted == [stepwise(target, row, heard, 0.0)]
        assert reference.greedy_ids(target, given, Stop(COUNT), SamplingOptions(0.0)) == wanted[0]


def test_sampled_by_generate(target: CsmTarget) -> None:
    """The model's own `generate` samples all codebooks of a frame, and none where one code alone is allowed (fp64)."""

    def frame(seed: int, **options: int) -> tuple[int, ...]:
        torch.manual_seed(seed)
        return tuple(reference.own_ids(target, prompts([1]), Stop(BOOKS), SamplingOptions(1.0, **options)))

    frames = {frame(seed) for seed in range(12)}
    assert len(frames) > len({codes[0] for codes in frames}), "one first code always had the same others"
    assert {frame(seed, top_k=1) for seed in range(3)} == {tuple(said(target, [1], False, 0.0)[0][:BOOKS])}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("heard", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_drafts_and_batches(target: CsmTarget, heard: bool, temperature: float) -> None:
    """equality: three rows of different length, at different places of their frames, give what the model's own forward
    gives with the same noise, drafted or not (fp64).
    """
    expected = [stepwise(target, row, heard, temperature) for row in range(3)]
    assert len({str(row) for row in expected}) == 3
    for drafted in all_drafters(target, expected):
        assert said(target, [0, 1, 2], heard, temperature, drafted) == expected
    for drafted in all_drafters(target, expected[1:2]):
        assert said(target, [1], heard, temperature, drafted) == expected[1:2]


def test_a_right_frame_takes_one_round(target: CsmTarget) -> None:
    """A frame that is guessed right takes one round, and the backbone one step a frame however it is guessed."""

    class Right(Drafter):
        max_nodes = 16

        def draft(self, state, noise, limit):  # noqa: ANN001, ANN202
            from mmspec.engine.tree import chain

            rest = (answer + [0] * 20)[len(state.tokens[0]) :][:15]
            return chain(state.roots, torch.tensor([rest]))

    (answer,) = said(target, [0], False, 0.0)
    steps: list[object] = []
    hook = csm().backbone_model.register_forward_hook(lambda *_: steps.append(None))
    found = generate(target, prompts([0]), 1, Stop(COUNT), Right(), sampling=SamplingOptions(0.0))
    hook.remove()
    # The prompt's pass commits the first code; then the rest of its frame, and three whole frames.
    assert found.tokens == [answer] and len(found.stats.runs[0]) == 1 + 1 + 3
    assert len(steps) == 1 + 3


def test_rows_that_join_and_leave(target: CsmTarget) -> None:
    """What the backbone has read stays with its rows."""
    expected = [stepwise(target, row, False, 0.0) for row in range(3)]
    batch = Batch(target, drafter("jacobi", target), SamplingOptions(0.0))
    found = [batch.join(prompts([0, 1]), [0, 0], Stop(COUNT)).tokens]
    found += [batch.round().tokens for _ in range(4)]
    batch.keep([1])
    found.append([[], *batch.join(prompts([2]), [0], Stop(COUNT)).tokens])
    while any(batch.running):
        found.append([[], *batch.round().tokens])
    rows = [sum((part[row] for part in found if row < len(part)), []) for row in range(3)]
    assert rows[1:] == expected[1:] and rows[0] == expected[0][: len(rows[0])]


def test_eager_attention_and_bfloat16(target: CsmTarget) -> None:
    """Masks of eager attention are additive; in bfloat16 the probe passes, and heads are read as they are."""
    own = hub.CsmForConditionalGeneration(csm().config)
    own.load_state_dict(csm().state_dict())
    own.double().eval().set_attn_implementation("eager")
    tokens = generate(target_of(own), prompts([0]), 1, Stop(COUNT), sampling=SamplingOptions(0.0)).tokens
    assert tokens == said(target, [0], False, 0.0)
    own.set_attn_implementation("sdpa")
    assert len(generate(target_of(own.bfloat16()), prompts([0]), 1, Stop(COUNT)).tokens[0]) == COUNT


def test_what_does_not_fit_is_refused(target: CsmTarget) -> None:
    """Other models, drafters that read features, and texts that leave no room."""
    with pytest.raises(MmspecError, match="LlamaForCausalLM is no CSM"):
        CsmTarget(llama())
    with pytest.raises(MmspecError, match="takes neither drafters that read its hidden states"):
        generate(target, prompts([0]), 1, Stop(COUNT), VadusaDrafter(32, heads=4).double())
    with pytest.raises(MmspecError, match="5 prompt tokens and 252 frames exceed the model's 256 positions"):
        generate(target, prompts([0]), 1, Stop(252 * BOOKS))


def test_the_probe_sees_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: heads of other places are noticed."""
    monkeypatch.setattr(CsmTarget, "find_decoder", lambda self: (self.heads.reverse(), self.model.backbone_model)[1])
    with pytest.raises(MmspecError, match="does not give its own logits"):
        CsmTarget(csm())
