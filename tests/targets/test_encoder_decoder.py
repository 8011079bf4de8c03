"""Encoder-decoder targets: plain decoding is the model's own forward, drafted or not, alone or in a batch."""

import pytest
import torch
import transformers as hub
from encoder_decoders import LENGTHS, asked, model, prompt
from tiny import OracleDrafter, drafter
from tiny_whisper import heard, whisper

from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Batch, Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.targets.encoder_decoder import EncoderDecoderTarget
from mmspec.targets.registry import TRANSCRIBERS, target_of
from mmspec.targets.vision_language import VisualPrompts

COUNT = 16
QUICK = [pytest.param(name, marks=[] if name == "whisper" else pytest.mark.sweep) for name in LENGTHS]


def given(name: str, rows: list[int]) -> VisualPrompts:
    return VisualPrompts([prompt(name, row) for row in rows], images=[asked(name, row) for row in rows])


def said(name: str, temperature: float, rows: list[int], drafted: Drafter | None = None) -> list[list[int]]:
    """What our loop says; row i has the seed 5 + i, wherever it is."""
    target, sampling, seeds = target_of(model(name)), SamplingOptions(temperature), [5 + row for row in rows]
    return generate(target, given(name, rows), len(rows), Stop(COUNT), drafted, sampling=sampling, seeds=seeds).tokens


@torch.inference_mode()
def stepwise(name: str, row: int, temperature: float) -> list[int]:
    """The model's own forward over the whole sequence, again for every token, without a cache."""
    own, ids = model(name), list(prompt(name, row))
    noise = Noise([5 + row], own.get_output_embeddings().weight.shape[0], "cpu", temperature == 0)
    for place in range(COUNT):
        sequence = torch.tensor([ids])  # without a mask, T5Gemma's forward hides pads, which its `generate` does not
        inputs = asked(name, row) | dict(decoder_input_ids=sequence, decoder_attention_mask=torch.ones_like(sequence))
        logits = own(**inputs, use_cache=False).logits[0, -1]
        ids.append(int((logits + noise.gumbel([place], 1)[0, 0]).argmax()))
    return ids[-COUNT:]


def test_every_family_is_tried() -> None:
    """The table of families and the sweep name the same."""
    assert set(TRANSCRIBERS) == set(LENGTHS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", QUICK)
def test_tokens_are_those_of_the_own_forward(name: str, temperature: float) -> None:
    """equality: greedy, and at T = 1 with the same noise; three rows of different length alone, together and drafted
    (fp64).
    """
    expected = [stepwise(name, row, temperature) for row in range(3)]
    assert len({str(row) for row in expected}) == 3 and len(set(sum(expected, []))) > 4
    target = target_of(model(name))
    oracles = [OracleDrafter(expected, target.vocabulary_size, seed=seed) for seed in range(3)]
    for drafted in [*(drafter(kind, target) for kind in ("none", "jacobi", "lookup")), *oracles]:
        assert said(name, temperature, [0, 1, 2], drafted) == expected
    for row in range(3):
        oracle = OracleDrafter(expected[row : row + 1], target.vocabulary_size, seed=row)
        assert said(name, temperature, [row], oracle) == [expected[row]]


@pytest.mark.parametrize("name", ["whisper", "moonshine"])
def test_rows_that_join_and_leave(name: str) -> None:
    """Encodings stay with their rows, of whatever length they are."""
    batch = Batch(target_of(model(name)), drafter("jacobi", target_of(model(name))), SamplingOptions(0.0))
    expected = [stepwise(name, row, 0.0) for row in range(3)]
    found = [batch.join(given(name, [0, 1]), [0, 0], Stop(COUNT)).tokens]
    found.append(batch.round().tokens)
    batch.keep([1])
    found.append([[], *batch.join(given(name, [2]), [0], Stop(COUNT)).tokens])
    while any(batch.running):
        found.append([[], *batch.round().tokens])
    rows = [sum((part[row] for part in found if row < len(part)), []) for row in range(3)]
    assert rows[1:] == expected[1:] and rows[0] == expected[0][: len(rows[0])]


def test_eager_attention() -> None:
    """Masks of eager attention are additive, those of the encoding too."""
    own = hub.MoonshineForConditionalGeneration(model("moonshine").config)
    own.load_state_dict(model("moonshine").state_dict())
    own.double().eval().set_attn_implementation("eager")
    found = generate(target_of(own), given("moonshine", [0, 1, 2]), 3, Stop(COUNT), sampling=SamplingOptions(0.0))
    assert found.tokens == [stepwise("moonshine", row, 0.0) for row in range(3)]


def test_what_is_heard_matters() -> None:
    """negative control: another sound, other tokens; and encodings may be given as they are."""
    target, own = EncoderDecoderTarget(whisper()), model("whisper")
    with torch.no_grad():
        encoded = own.get_encoder()(heard()).last_hidden_state
    prompts = VisualPrompts([prompt("whisper", 0)] * 3, images=[{"encoder_hidden_states": row} for row in encoded])
    found = generate(target, prompts, 3, Stop(COUNT), sampling=SamplingOptions(0.0)).tokens
    assert found[0] == stepwise("whisper", 0, 0.0) and len({str(row) for row in found}) == 3


def test_all_positions_may_be_used() -> None:
    """Whisper speaks until its positions end, whatever drafts."""
    target = EncoderDecoderTarget(whisper())
    room = target.max_positions - len(prompt("whisper", 0))
    plain = generate(target, given("whisper", [0]), 1, Stop(room), sampling=SamplingOptions(0.0)).tokens
    drafted = drafter("jacobi", target)
    assert len(plain[0]) == room
    found = generate(target, given("whisper", [0]), 1, Stop(room), drafted, sampling=SamplingOptions(0.0))
    assert found.tokens == plain
    with pytest.raises(MmspecError, match="4 prompt tokens and 45 new ones exceed the model's 48 positions"):
        generate(target, given("whisper", [0]), 1, Stop(room + 1))


def test_the_probe_sees_wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: a decoder that is given other positions is refused."""
    own = hub.WhisperForConditionalGeneration(whisper().config)
    own.load_state_dict(whisper().state_dict())
    forward = own.model.decoder.forward
    monkeypatch.setattr(own.model.decoder, "forward", lambda **given: forward(**given | {"position_ids": None}))
    monkeypatch.setattr("mmspec.engine.cache.signature", lambda _: type("", (), {"parameters": {"cache": None}}))
    with pytest.raises(MmspecError, match="does not give its own logits"):
        EncoderDecoderTarget(own.double())


def test_what_does_not_fit_is_refused() -> None:
    """Other encoder-decoder models by name, and prompts without anything to hear."""
    small = dict(d_model=16, num_layers=1, num_decoder_layers=1, num_heads=2, d_kv=8, d_ff=16, vocab_size=20)
    with pytest.raises(MmspecError, match="T5ForConditionalGeneration is an encoder-decoder model whose decoder"):
        target_of(hub.T5ForConditionalGeneration(hub.T5Config(**small)))
    with pytest.raises(MmspecError, match="is given 1 prompts and 0 things to read"):
        generate(EncoderDecoderTarget(whisper()), Prompts([[1]]), 1, Stop(3))
    with pytest.raises(MmspecError, match="is an encoder-decoder model whose decoder"):
        CausalTarget(whisper())
