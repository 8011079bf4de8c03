"""A speech recipe, as small as it goes, from real recordings to drafters; how recordings continue, and what training
reads.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("hibari")

from mmspec.codecs.mel import RATE, vocoder
from mmspec.drafters import load
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.train.recipe import train
from mmspec.train.run import Run
from recipes.wren_86 import codec, stages
from recipes.wren_86 import data as voices
from recipes.wren_86.data import build, recording, speech_span, synthetic_sentence
from recipes.wren_86.target import JointModel, SpeechSequence, batches, insert_marks, phoneme_tokenizer

pytestmark = pytest.mark.slow

LINES = [
    f"{one} {other}."
    for one in ("Red apples", "Two birds", "The old men")
    for other in ("fall", "sing", "wait", "go home", "sleep")
]
BUDGET = {"steps": 3, "minutes": 5}


def recipe() -> dict:
    """The shape of models/wren-86/recipe.yaml."""
    llama = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 1024,
    }
    learning = {"lr": 1e-3, "budget": BUDGET}
    drafter = {"lr": 1e-3, "batch": 2, "steps": 2, "evaluations": 1, "answers": "data"}
    return {
        "module": "recipes.wren_86.stages",
        "data": {"voices": {"heart": 8}, "held_out": 4},
        "codec": learning
        | {"utterances": 6, "crop": 16, "batch": 2}
        | {"model": {"width": 16, "code_width": 4, "codes": 32, "stride": 1, "dilations": [1], "vocoder_width": 32}},
        "target": learning
        | {
            "muon_lr": 1e-3,
            "heads": 5,
            "head_weight": 0.2,
            "head_decay": 0.8,
            "widths": [128, 352],
            "tokens": 704,
            "noise": 0.2,
        }
        | {"model": llama},
        "capture": {"sampled": 20, "taken": 4, "batch": 20, "held_out": 2, "temperature": 1.0},
        "drafters": {
            "vadusa": drafter | {"kind": "vadusa", "initial": "heads.pt", "model": {"heads": 5}},
            "medusa": drafter | {"kind": "medusa", "model": {"neighbours": [[0, 2], [0, 3]]}},
            "hawk-path": drafter
            | {"kind": "hawk-path", "model": {"width": 16, "inner": 16, "depth": 3}, "loss": {"anchors": 4}},
        },
        "pipeline": {"drafter": "jacobi", "temperature": 0.8},
    }


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `recipe.yaml`, the work folder and the model that it made; only what would be fetched is
    replaced.
    """
    folder = tmp_path_factory.mktemp("speech")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voices, "sentences", lambda folder, count, seed: LINES[:count])
        patch.setattr(codec, "vocoder_weights", lambda folder: vocoder(32).state_dict())
        train(folder / "recipe.yaml", folder / "work", folder / "out", device="cpu")
    return folder


def test_a_recipe_makes_a_voice(rebuilt: Path) -> None:
    """Everything is in the folder, the end is a token of the model, and all drafters give the tokens of plain
    decoding.
    """
    pipe = TextToSpeechPipeline.from_pretrained(rebuilt / "out", torch_dtype=torch.float64)
    assert (
        pipe.interleaved
        and pipe.voices == ["heart"]
        and pipe.transformer.config.eos_token_id == len(pipe.tokenizer) + 32
    )
    settings = dict(seed=3, temperature=1.0)
    wanted = pipe("Two birds sing.", drafter="none", **settings)
    assert len(wanted.audio) == 256 * len(wanted.tokens[0]) > 0 and all(0 <= code < 32 for code in wanted.tokens[0])
    for name in ("vadusa", "medusa", "hawk-path"):
        drafter = load(name, pipe.folder, pipe.target)
        assert drafter.target_hash == pipe.target.weights_hash and all(beta > 0 for beta in drafter.beta)
        assert pipe("Two birds sing.", drafter=drafter, **settings).tokens == wanted.tokens
    rows = [json.loads(line) for line in (rebuilt / "out" / "prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == LINES[:4] and all(
        row["voice"] == "heart" and row["held_out"] for row in rows
    )


def test_prompts_of_drafters(rebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of two training texts, and training texts, which the pipeline reads as their recordings do, with their
    tokens.
    """
    monkeypatch.setattr(voices, "sentences", lambda folder, count, seed: LINES[:count])
    pipe = TextToSpeechPipeline.from_pretrained(rebuilt / "out")
    run = Run(recipe(), rebuilt / "work", rebuilt / "out", "cpu")
    rows = stages.prompts(run, pipe)
    spliced, taken = rows[:20], rows[20:]
    assert len(taken) == 4 and all(row["prompt"] in LINES[4:] and row["voice"] == "heart" for row in taken)
    for row in spliced:
        words = row["prompt"].split(" ")
        assert any(line.startswith(f"{words[0]} {words[1]}") for line in LINES[4:]) and "tokens" not in row
        assert any(line.endswith(f" {words[-1]}") for line in LINES[4:])
    assert any(row["prompt"] not in LINES for row in spliced)
    sequences = {utterance.text: sequence for utterance, sequence in stages.speech_sequences(run)[0]}
    for row in taken:
        (prompt,) = pipe.encode_examples([row])[0].conditional
        assert prompt == sequences[row["prompt"]].prompt
        assert row["tokens"].count(pipe.end + 1) == len(prompt) - 3 and row["tokens"][-1] == pipe.end


def test_vadusa_takes_the_jointly_trained_heads(rebuilt: Path) -> None:
    """Its weights are those that were trained with the target, and its accuracies are shares of what
    calibration saw.
    """
    pipe = TextToSpeechPipeline.from_pretrained(rebuilt / "out")
    drafter = load("vadusa", pipe.folder, pipe.target)
    trained = torch.load(rebuilt / "work" / "heads.pt", weights_only=True)
    assert len(drafter.heads) == 5 and trained.keys() == drafter.heads.state_dict().keys()
    assert all(
        torch.allclose(value, trained[key].to(value), atol=1e-2) for key, value in drafter.heads.state_dict().items()
    )
    assert len(drafter.accuracies) == 5 and all(0 <= sum(row) <= 1.001 for row in drafter.accuracies)


def test_recordings_continue(rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that stopped half-way goes on where its list ends; fewer sentences are its first; other sentences
    begin anew.
    """
    monkeypatch.setattr(voices, "sentences", lambda folder, count, seed: LINES[:count])
    whole = build(rebuilt / "work" / "data", {"heart": 8}, 4)["heart"]
    rows = (rebuilt / "work" / "data" / "heart.jsonl").read_text().splitlines(True)
    samples = recording(rebuilt / "work" / "data", "heart")
    (tmp_path / "heart.jsonl").write_text("".join(rows[:9]))
    samples[: whole[9].end - 100].tofile(tmp_path / "heart.pcm")  # the tenth was being written
    assert build(tmp_path, {"heart": 8}, 4)["heart"] == whole
    assert (recording(tmp_path, "heart") == samples).all()
    assert build(tmp_path, {"heart": 2}, 4)["heart"] == whole[:6]
    monkeypatch.setattr(voices, "sentences", lambda folder, count, seed: LINES[5 : 5 + count])
    other = build(tmp_path, {"heart": 1}, 1)["heart"]
    assert (
        [one.text for one in other] == LINES[5:7]
        and other[0].start == 0
        and [one.held_out for one in other] == [True, False]
    )


def test_recorded_speech_is_trimmed() -> None:
    """Silence at both ends is cut to 0.08 s; speech that is all silence, or ends at once, stays as it is."""
    speech = torch.cat([torch.zeros(9000), torch.full((500,), 0.5), torch.zeros(9000)])
    assert speech_span(speech) == (9000 - 1764, 9499 + 1764) and speech_span(torch.zeros(100)) == (0, 100)
    assert speech_span(torch.full((500,), 0.5)) == (0, 500)


def test_onsets(rebuilt: Path) -> None:
    """Each phoneme has a place in its recording, in order, and its sound is there: vowels are louder than stops; 0.1 s
    later they are not.
    """
    loud: dict[int, dict[str, list[float]]] = {0: {}, RATE // 10: {}}
    for one in build(rebuilt / "work" / "data", {"heart": 8}, 4)["heart"]:
        assert len(one.onsets) == len(one.phonemes) and one.onsets == sorted(one.onsets)
        assert one.onsets[0] >= 0 and one.onsets[-1] <= one.end - one.start
        samples = recording(rebuilt / "work" / "data", "heart")[one.start : one.end].astype(float)
        for late, found in loud.items():
            for letter, begin, end in zip(one.phonemes, one.onsets, one.onsets[1:]):
                kind = "vowel" if letter in "æɑɔiuɪOAIəʌɛ" else "stop" if letter in "ptkbdɡ" else ""
                found.setdefault(kind, []).append((samples[begin + late : end + late] ** 2).mean() ** 0.5)
    right, wrong = (np.nanmean(found["vowel"]) / np.nanmean(found["stop"]) for found in loud.values())
    assert len(loud[0]["stop"]) > 20 and right > 1.6 and wrong < 1.2


def test_made_sentences() -> None:
    """They hold what WordNet lacks: numbers, money, times, questions; and are many."""
    import random

    chance = random.Random(0)
    found = {synthetic_sentence(chance) for _ in range(400)}
    assert len(found) > 380
    for mark in ("$", "?", ":", "%", "Mr.", "Dr.", "o'clock"):
        assert any(mark in line for line in found)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_batches(noise: float) -> None:
    """Labels are what is said and the end, inputs are padded to a width; noise changes codes among the inputs only,
    into other codes.
    """
    found = [
        SpeechSequence("ada", [1, 4, 7, 2], torch.tensor([32, *[row % 30] * (4 + row), 31], dtype=torch.int16))
        for row in range(20)
    ]
    letters = torch.arange(8) >= 5
    found.append(SpeechSequence("ada", [1, 2], torch.zeros(100, dtype=torch.int16)))  # fits no width
    known = {tuple(one.tokens.tolist()) for one in found[:-1]}
    source = batches(found, 8, 31, letters, [16, 32], 64, noise, 1.0, seed=0)
    widths, wrong, total = set(), 0, 0
    for _ in range(40):
        ids, labels = next(source)
        widths.add(ids.shape)
        kept = labels != -100
        assert all(tuple(row[row != -100].tolist()) in known for row in labels)
        assert (ids[:, 0] == 1).all() and (ids[kept] < 40).all() and ((ids[kept] == 7) == (labels[kept] == 32)).all()
        codes = labels < 32
        wrong, total = wrong + int((ids != labels + 8)[kept & codes].sum()), total + int(kept.sum())
    assert widths == {(4, 16), (2, 32)}
    assert wrong == 0 if noise == 0 else 0.02 < wrong / total < 0.2


@pytest.mark.parametrize(("balance", "share"), [(1.0, 0.1), (0.5, 0.25), (0.0, 0.5)])
def test_balance(balance: float, share: float) -> None:
    """A voice with a tenth of the sequences is drawn as often as its count to this power says."""
    counts = {"ada": 90, "ben": 10}
    found = [
        SpeechSequence(voice, [mark, 2], torch.full((6,), row, dtype=torch.int16))
        for mark, (voice, count) in enumerate(counts.items(), 4)
        for row in range(count)
    ]
    source = batches(found, 200, 101, torch.arange(200) > 9, [8], 800, 0.0, balance, seed=0)
    ids = torch.cat([next(source)[0] for _ in range(20)])
    assert (ids[:, 0] == 5).float().mean().item() == pytest.approx(share, abs=0.04)


def test_heads_look_further_ahead(rebuilt: Path) -> None:
    """The loss of head k is over the code k + 1 places on: codes that can be told only from the place before cost it
    nothing.
    """
    pipe = TextToSpeechPipeline.from_pretrained(rebuilt / "out")
    model = JointModel(pipe.transformer, len(pipe.tokenizer), 2)
    ids = torch.tensor([[1, 5, 2, *[len(pipe.tokenizer) + code for code in (3, 4, 5, 6)]]])
    labels = torch.tensor([[-100] * 3 + [3, 4, 5, 6]])
    terms = model.terms(pipe.transformer.model, (ids, labels), 0.5, 0.8)
    hidden = pipe.transformer.model(ids).last_hidden_state[0]
    table = pipe.transformer.lm_head.weight[len(pipe.tokenizer) :]

    def error(states: torch.Tensor, wanted: list[int]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(states @ table.T, torch.tensor(wanted))

    own, first, second = (
        error(hidden[2:6], [3, 4, 5, 6]),
        error(model.heads[0](hidden)[1:5], [3, 4, 5, 6]),
        error(model.heads[1](hidden)[0:4], [3, 4, 5, 6]),
    )
    assert terms["own"] == pytest.approx(float(own.detach())) and terms["last"] == pytest.approx(float(second.detach()))
    assert float(terms["loss"].detach()) == pytest.approx(float(own + 0.5 * (0.8 * first + 0.64 * second).detach()))


def test_marked() -> None:
    """A mark stands before the codes from each place on, as many at one place as there are; no code is lost, and the
    end is last.
    """
    codes = torch.tensor([5, 6, 7, 8])
    assert insert_marks(codes, torch.tensor([0, 2, 2]), 9).tolist() == [10, 5, 6, 10, 10, 7, 8, 9]
    assert insert_marks(codes, torch.tensor([1, 4]), 9).tolist() == [5, 10, 6, 7, 8, 10, 9]


def test_phoneme_tokenizer() -> None:
    """One token a phoneme between marks, the voice one token; letters it does not know are unknown, none is split off
    or joined.
    """
    text = phoneme_tokenizer(["a", "b", " "], ["ada"])
    names = text.convert_ids_to_tokens(text("<ada>ab a").input_ids)
    assert names == ["<bos>", "<ada>", "a", "b", " ", "a", "<speech>"]
    assert text("<ada>xa").input_ids[2] == text.unk_token_id


def test_the_order_of_voices_counts(tmp_path: Path) -> None:
    """Tokens of one order of voices are never taken for those of another."""
    run = Run({}, tmp_path, tmp_path, None)
    assert run.file("tokens", {"ada": 2, "ben": 2}) != run.file("tokens", {"ben": 2, "ada": 2})
