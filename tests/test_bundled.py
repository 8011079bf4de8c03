"""The models that ship: real weights, real codes, every drafter."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from mmspec import drafters, reference, zoo
from mmspec.cli import main
from mmspec.engine.loop import Generation, Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

NAMES = ["lookup", "jacobi", "medusa", "hawk", "hawk-path"]
SPEECH = ["lookup", "jacobi", "vadusa", "medusa", "hawk-path"]
ANSWERS = ["lookup", "jacobi", "msd", "eagle-2"]
ASKED = [{"prompt": "The train leaves at 7:45.", "voice": "heart"}, {"prompt": "Who knows?", "voice": "bella"}]


@cache
def pipe() -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained("emoji-64", torch_dtype=torch.float64)


@cache
def plain_codes(temperature: float, guidance: float) -> list[list[int]]:
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style", "a pizza on a blue background"], guidance)
    return generate(target, prompts, 2, Stop(64), sampling=SamplingOptions(temperature), seeds=5).tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("temperature", "guidance"), [(0.0, 1.0), (0.7, 2.0), (1.0, 2.0)])
def test_same_tokens_as_plain_decoding(name: str, temperature: float, guidance: float) -> None:
    """equality: in fp64 each drafter gives the tokens of AR, in a batch of two."""
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style", "a pizza on a blue background"], guidance)
    drafter = drafters.load(name, pipe().folder, target)
    found = generate(target, prompts, 2, Stop(64), drafter, sampling=SamplingOptions(temperature), seeds=5)
    assert found.tokens == plain_codes(temperature, guidance)


@pytest.mark.slow
def test_drafting_pays() -> None:
    """Drafts are accepted: more than two and a half tokens a round with weights and without."""
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style"], 2.0)
    for name, least in (("hawk-path", 2.5), ("jacobi", 2.5)):
        drafter = drafters.load(name, pipe().folder, target)
        stats = generate(target, prompts, 1, Stop(96), drafter, seeds=1).stats
        assert stats.mean_acceptance_length > least


def test_a_picture_from_the_command_line(tmp_path) -> None:
    """`mmspec image` writes a 64×64 PNG that says how it was made, the same with and without a drafter."""
    for name in ("hawk-path", "none"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "image",
                    "a red heart, 3d style",
                    "-o",
                    str(tmp_path / f"{name}.png"),
                    "--seed",
                    "3",
                    "--drafter",
                    name,
                    "--dtype",
                    "fp64",
                    "--quiet",
                ]
            )
        assert end.value.code == 0
    drafted, plain = (Image.open(tmp_path / f"{name}.png") for name in ("hawk-path", "none"))
    assert drafted.size == (64, 64) and drafted.text["seed"] == "3" and drafted.text["lossless"] == "yes"
    assert drafted.tobytes() == plain.tobytes()


@pytest.mark.parametrize("model", zoo.bundled())
def test_the_drafters_know_their_target(model: str) -> None:
    """Every bundled drafter records the hash of the weights it was trained on."""
    folder = zoo.resolve(model)
    known = zoo.weights_hash(folder / "transformer")
    assert zoo.drafters(folder)
    for name in zoo.drafters(folder):
        assert f'"target": "{known}"' in (folder / "drafters" / name / "config.json").read_text()


@cache
def speaker() -> TextToSpeechPipeline:
    return TextToSpeechPipeline.from_pretrained("wren-86", torch_dtype=torch.float64)


def said(drafter: str, temperature: float, penalty: float, rule: str = "exact") -> Generation:
    prompts, stop = speaker().encode_examples(ASKED)
    law = SamplingOptions(temperature, repetition_penalty=penalty)
    known = drafters.load(drafter, speaker().folder, speaker().target)
    return generate(speaker().target, prompts, 2, replace(stop, length=64), known, sampling=law, seeds=5, rule=rule)


@cache
def plainly(temperature: float, penalty: float) -> list[list[int]]:
    return said("none", temperature, penalty).tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize(("temperature", "penalty"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.2)])
def test_same_speech_as_plain_decoding(name: str, temperature: float, penalty: float) -> None:
    """equality: in fp64 each drafter gives the tokens of AR, two voices in a batch."""
    assert said(name, temperature, penalty).tokens == plainly(temperature, penalty)


def test_greedy_speech_is_that_of_transformers() -> None:
    """equality: plain decoding is `transformers.generate` of the same options, and each phoneme has begun once, in
    turn.
    """
    target = speaker().target
    for row in ASKED:
        prompts, stop = speaker().encode_examples([row])
        stop = replace(stop, length=96)
        tokens = generate(target, prompts, 1, stop, sampling=SamplingOptions(0.0)).tokens[0]
        ids = reference.greedy_ids(target, prompts, stop, SamplingOptions(0.0))[: len(tokens)]
        assert ids == target.model_ids(torch.tensor(prompts.conditional[0]), torch.tensor(tokens)).tolist()
        begun = [token for token in ids if token < int(target.vocabulary.min())]
        assert len(begun) > 3 and begun == prompts.conditional[0][2:-1][: len(begun)]


@pytest.mark.slow
def test_a_single_word_is_said_to_its_end() -> None:
    """The shortest texts have room for their last sound: one in nine, at most, is cut."""
    ended = [
        why
        for voice in speaker().voices
        for text in ("Go.", "Five", "Hi")
        for why in speaker()(text, voice=voice, seed=1).ended
    ]
    assert ended.count("end") >= 8


@pytest.mark.slow
def test_tolerance_is_lossy_and_longer() -> None:
    """The negative control: more tokens a round, other tokens, and the result says so."""
    exact, loose = said("vadusa", 1.0, 1.0), said("vadusa", 1.0, 1.0, "tolerance:5")
    assert exact.stats.lossless and not loose.stats.lossless
    assert (
        loose.tokens != exact.tokens and loose.stats.mean_acceptance_length > exact.stats.mean_acceptance_length > 1.2
    )


def test_speech_from_the_command_line(tmp_path) -> None:
    """`mmspec speak` writes a WAV of a plausible length, the same with and without a drafter."""
    soundfile = pytest.importorskip("soundfile")
    for name in ("vadusa", "none"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "speak",
                    "Hello there.",
                    "-o",
                    str(tmp_path / f"{name}.wav"),
                    *f"--seed 3 --drafter {name} --dtype fp64 --quiet".split(),
                ]
            )
        assert end.value.code == 0
    (drafted, rate), (plain, _) = (soundfile.read(tmp_path / f"{name}.wav") for name in ("vadusa", "none"))
    assert rate == 22050 and 0.4 * rate < len(drafted) < 3 * rate and abs(drafted).max() > 0.05
    assert (drafted == plain).all()


@cache
def asker() -> ImageTextToTextPipeline:
    return ImageTextToTextPipeline.from_pretrained("magpie-135", torch_dtype=torch.float64)


@cache
def questions() -> list[dict]:
    """A description, a chat that goes on, and a question without a picture."""
    known = {line["kind"]: line for line in zoo.prompts(asker().folder)}
    return [known["describe"], known["follow-up"], {"prompt": "What is the capital of France?"}]


def answered(drafter: str, temperature: float) -> Generation:
    prompts, stop = asker().encode_examples(questions())
    known = drafters.load(drafter, asker().folder, asker().target)
    return generate(
        asker().target, prompts, 3, replace(stop, length=24), known, sampling=SamplingOptions(temperature), seeds=5
    )


@cache
def plainly_answered(temperature: float) -> list[list[int]]:
    return answered("none", temperature).tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_answers_as_plain_decoding(name: str, temperature: float) -> None:
    """equality: in fp64 each drafter gives the tokens of AR, three chats in a batch."""
    assert answered(name, temperature).tokens == plainly_answered(temperature)


def test_greedy_answers_are_those_of_transformers() -> None:
    """equality: plain decoding in our loop is `transformers.generate`."""
    for question, tokens in zip(questions(), plainly_answered(0.0), strict=True):
        prompts, _ = asker().encode_examples([question])
        ids = torch.tensor(prompts.conditional)
        pixels = prompts.images[0] if prompts.images else {}
        stop = dict(max_new_tokens=24, eos_token_id=sorted(asker().ends), pad_token_id=0)
        wanted = asker().transformer.generate(
            ids, attention_mask=torch.ones_like(ids), **pixels, do_sample=False, **stop
        )
        assert wanted[0, ids.shape[1] :].tolist() == tokens


def test_an_answer_from_the_command_line(capfd: pytest.CaptureFixture) -> None:
    """`mmspec ask` says what is in a picture, the same with and without a drafter, and MSD's drafts are accepted."""
    found = {}
    for name in ("msd", "none"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "ask",
                    str(asker().folder / "samples" / "00.png"),
                    "Describe the picture.",
                    *f"--drafter {name} --dtype fp32 --json".split(),
                ]
            )
        assert end.value.code == 0
        found[name] = json.loads(capfd.readouterr().out)
    assert found["msd"]["answer"] == found["none"]["answer"] and len(found["msd"]["answer"].split()) > 4
    assert found["msd"]["mean_acceptance_length"] > 2
