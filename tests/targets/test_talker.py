"""The talker of Qwen2.5-Omni says the codes of its own `generate`, drafted or not, alone or in a batch."""

import pytest
import torch
from tiny import OracleDrafter, drafter
from tiny_omni import BOS, EOS, MASK, PAD, TEXT_BOS, Vocoder, omni

import mmspec
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines.families import check_speaker
from mmspec.targets.base import Prompts
from mmspec.targets.registry import target_of
from mmspec.targets.talker import TalkerTarget
from mmspec.targets.vision_language import VisualPrompts

COUNT = 16
# Lengths of prompts and of replies: some are said in full before the last code, others are not.
SIZES = [(7, 5), (4, 30), (9, 1)]


@pytest.fixture(scope="module")
def target() -> TalkerTarget:
    made = target_of(omni().talker)
    assert isinstance(made, TalkerTarget)
    return made


def given(rows: list[int]) -> VisualPrompts:
    """Rows as the whole model gives them to its talker."""
    ids, inputs = [], []
    for row in rows:
        length, parts = SIZES[row]
        rng = torch.Generator().manual_seed(row)
        ids.append([MASK] * (length - 2) + [PAD, BOS])
        vectors, reply = (torch.randn(1, n, 32, generator=rng).double() for n in (length, parts))
        text = torch.randint(1, 60, (1, length), generator=rng)
        inputs.append({"inputs_embeds": vectors, "thinker_reply_part": reply, "input_text_ids": text})
    return VisualPrompts(ids, images=inputs)


def said(target: TalkerTarget, rows: list[int], temperature: float, drafted: Drafter | None = None) -> list:
    sampling, seeds = SamplingOptions(temperature), [5 + row for row in rows]
    return generate(target, given(rows), len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seeds).tokens


@torch.inference_mode()
def stepwise(row: int, temperature: float) -> list[int]:
    """The model's own layers over the whole sequence, again for every code."""
    talker, (inputs,) = omni().talker, given([row]).images
    embed, codes = talker.get_input_embeddings(), []
    vectors = inputs["inputs_embeds"].clone()
    vectors[:, -2:] += embed(torch.tensor([PAD, BOS]))
    reply, noise = inputs["thinker_reply_part"], Noise([5 + row], 60, "cpu", temperature == 0)
    for place in range(COUNT):
        logits = talker(inputs_embeds=vectors, use_cache=False).logits[0, -1]
        codes.append(int((logits + noise.gumbel([place], 1)[0, 0]).argmax()))
        part = reply[:, min(place, reply.shape[1] - 1)]
        vectors = torch.cat([vectors, (embed(torch.tensor(codes[-1:])) + part)[None]], 1)
    return codes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_the_own_forward(target: TalkerTarget, temperature: float) -> None:
    """equality: greedy, and at T = 1 with the same noise; three rows of different length alone, together and drafted
    (fp64).
    """
    expected = [stepwise(row, temperature) for row in range(3)]
    assert len({str(row) for row in expected}) == 3 and len(set(sum(expected, []))) > 10
    oracles = [OracleDrafter(expected, target.vocabulary_size, seed=seed) for seed in range(3)]
    for drafted in [*(drafter(kind, target) for kind in ("none", "jacobi", "lookup")), *oracles]:
        assert said(target, [0, 1, 2], temperature, drafted) == expected
    for row in range(3):
        oracle = OracleDrafter(expected[row : row + 1], target.vocabulary_size, seed=row)
        assert said(target, [row], temperature, oracle) == [expected[row]]


def test_rows_that_join_and_leave(target: TalkerTarget) -> None:
    """Replies stay with their rows, of whatever length they are."""
    expected = [stepwise(row, 0.0) for row in range(3)]
    batch = Batch(target, drafter("jacobi", target), SamplingOptions(0.0))
    found = [batch.join(given([0, 2]), [0, 0], Stop(COUNT)).tokens, batch.round().tokens]
    batch.keep([1])
    found.append([[], *batch.join(given([1]), [0], Stop(COUNT)).tokens])
    while any(batch.running):
        found.append([[], *batch.round().tokens])
    rows = [sum((part[row] for part in found if row < len(part)), []) for row in range(3)]
    assert [rows[2], rows[1]] == expected[1:] and rows[0] == expected[0][: len(rows[0])]


@pytest.mark.parametrize("rows", [1, 3])
def test_inside_generate_of_the_whole_model(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """equality: `generate(..., talker_custom_generate=mmspec.speculate())`: the thinker answers, our loop says its
    codes, and its vocoder is given them; also where rows are padded and answers end before others.
    """
    model = omni()
    monkeypatch.setattr(model, "token2wav", Vocoder(), raising=False)
    monkeypatch.setattr(model, "has_talker", True)
    person = {"bos_token": TEXT_BOS, "cond": torch.zeros(1, 4), "ref_mel": torch.zeros(1, 4, 4)}
    monkeypatch.setattr(model, "speaker_map", {"Chelsie": person})
    ids = torch.tensor([[1, 5, 9, 20, 3], [0, 0, 7, 8, 30], [0, 9, 4, 4, 6]])[:rows]
    options = dict(
        attention_mask=(ids != 0).long(),
        thinker_max_new_tokens=12,
        thinker_do_sample=False,
        thinker_eos_token_id=[33, 57],
        thinker_pad_token_id=0,
        talker_max_new_tokens=30,
        talker_eos_token_id=[EOS],
    )
    answer, expected = model.generate(input_ids=ids, **options, talker_do_sample=False)
    expected = torch.cat([expected] if rows == 1 else expected)
    assert len(set(expected.tolist())) > 5

    def spoken(drafter: str, sample: bool) -> torch.Tensor:
        torch.manual_seed(3)
        how = dict(talker_do_sample=sample, talker_custom_generate=mmspec.speculate(drafter))
        found, codes = model.generate(input_ids=ids, **options, **how)
        assert torch.equal(found, answer)
        return torch.cat([codes] if rows == 1 else codes)

    for name in ("none", "jacobi", "lookup"):
        assert torch.equal(spoken(name, False), expected)
        assert torch.equal(spoken(name, True), spoken("none", True))


def test_what_does_not_fit_is_refused(target: TalkerTarget, tmp_path) -> None:  # noqa: ANN001
    """Prompts without a thinker's reply; and the whole model as a speaker of texts."""
    with pytest.raises(MmspecError, match="the talker reads what the thinker answered"):
        generate(target, Prompts([[MASK, PAD, BOS]]), 1, Stop(3))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_omni"}')
    with pytest.raises(MmspecError, match="speaks its answers, and not a text"):
        check_speaker(tmp_path)


def test_the_probe_sees_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: codes that are read with the reply of another place are noticed."""
    vectors = TalkerTarget._vectors
    monkeypatch.setattr(
        TalkerTarget, "_vectors", lambda self, nodes, places, reply: vectors(self, nodes, places + 1, reply)
    )
    with pytest.raises(MmspecError, match="does not give its own logits"):
        TalkerTarget(omni().talker)
