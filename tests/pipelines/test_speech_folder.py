"""Folders of a speech model: saved and loaded again, or refused where they are damaged."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from speech_cases import LONG, TEXT, dac

import mmspec
from mmspec import drafters, zoo
from mmspec.codecs.mel import MelCodec
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

pytest.importorskip("soundfile")


@pytest.fixture
def copy(speech_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(speech_folder, tmp_path / "model"))


def test_round_trip(pipe, tmp_path: Path) -> None:
    """A saved pipeline gives the same tokens and samples; settings, drafters and card travel along."""
    folder = tmp_path / "saved"
    pipe.save_pretrained(folder)
    again = TextToSpeechPipeline.from_pretrained(folder, torch_dtype=torch.float64)
    again.reader = pipe.phonemizer
    wanted, found = (one(LONG, seed=3, drafter="vadusa") for one in (pipe, again))
    assert found.tokens == wanted.tokens and torch.equal(found.audio, wanted.audio)
    assert (again.voices, again.drafter, again.tokens_per_phoneme, again.silence) == (
        ["ada", "ben"],
        "jacobi",
        3.0,
        frozenset(),
    )
    again.save_pretrained(folder)
    twice = TextToSpeechPipeline.from_pretrained(folder, dtype=torch.float64)
    twice.reader = pipe.phonemizer
    assert twice(TEXT, seed=4).tokens == pipe(TEXT, seed=4).tokens


def test_drafters_follow_the_weights(copy: Path, tmp_path: Path) -> None:
    """Saved in another dtype, the weights have another name, and drafters of theirs know it: loading them does not
    warn.
    """
    config = copy / "drafters" / "vadusa" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target": zoo.weights_hash(copy / "transformer")}))
    (copy / "README.md").write_text("card")
    pipe = TextToSpeechPipeline.from_pretrained(copy, torch_dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path / "saved")
    assert zoo.weights_hash(tmp_path / "saved" / "transformer") != pipe.target.weights_hash
    again = TextToSpeechPipeline.from_pretrained(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drafters.load("vadusa", again.folder, again.target)
    assert (tmp_path / "saved" / "README.md").read_text() == "card"


WEIGHTS = ("transformer/model.safetensors", "codec/model.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(copy: Path, name: str) -> None:
    """Truncated, replaced by text, or missing: the error names the file."""
    path, whole = copy / name, (copy / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(MmspecError, match=f"{name} is truncated or is no safetensors file"):
            TextToSpeechPipeline.from_pretrained(copy)
    path.unlink()
    with pytest.raises(MmspecError, match=f"{name} is missing: restore it"):
        TextToSpeechPipeline.from_pretrained(copy)


def test_foreign_weights(copy: Path) -> None:
    """Sound files of another model, or of another size of this one, are refused instead of loaded in part."""
    first, second = (copy / name for name in WEIGHTS)
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(MmspecError, match="transformer/model.safetensors holds the weights of another model"):
        TextToSpeechPipeline.from_pretrained(copy)
    first.write_bytes(whole)
    own = second.read_bytes()
    second.write_bytes(whole)
    with pytest.raises(MmspecError, match="codec/model.safetensors holds the weights of another model"):
        TextToSpeechPipeline.from_pretrained(copy)
    second.write_bytes(own)
    config = copy / "codec" / "config.json"
    for old, new in (('"width": 16', '"width": 24'), ('"width": 16', '"breadth": 16')):
        whole = config.read_text()
        config.write_text(whole.replace(old, new))
        with pytest.raises(
            MmspecError, match="codec/model.safetensors holds the weights of another model than .*codec/config.json"
        ):
            TextToSpeechPipeline.from_pretrained(copy)
        config.write_text(whole)


@pytest.mark.parametrize("name", ["tokenizer", "transformer", "codec"])
def test_missing_component(copy: Path, name: str) -> None:
    """A folder that lacks a component is refused by the component's name, unless it is given."""
    given = getattr(TextToSpeechPipeline.from_pretrained(copy), name)
    shutil.rmtree(copy / name)
    with pytest.raises(MmspecError, match=f"model/{name}"):
        TextToSpeechPipeline.from_pretrained(copy)
    assert getattr(TextToSpeechPipeline.from_pretrained(copy, **{name: given}), name) is given


@pytest.mark.parametrize(
    "name", ["model_index.json", "tokenizer/tokenizer.json", "transformer/config.json", "codec/config.json"]
)
@pytest.mark.parametrize("text", ["{ not json", "[]", ""])
def test_damaged_json(copy: Path, name: str, text: str) -> None:
    """The error names the file, or its component's folder."""
    (copy / name).write_text(text)
    with pytest.raises(MmspecError, match=name.split("/")[0]):
        TextToSpeechPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"_class_name": "TextToImagePipeline"},
            "holds a TextToImagePipeline, not a TextToSpeechPipeline: give a text-to-speech model",
        ),
        ({"_class_name": None}, "holds a None, not a TextToSpeechPipeline"),
        ({"voices": None}, "model_index.json: voices is None"),
        ({"voices": "ada"}, "model_index.json: voices is 'ada'"),
        ({"voices": []}, "model_index.json: voices is empty: name at least one"),
        ({"voices": ["ada", "eve"]}, "model_index.json: the tokenizer has no token <eve>"),
        ({"temperature": "hot"}, "model_index.json: temperature is 'hot'"),
        ({"tokens_per_phoneme": None}, "model_index.json: tokens_per_phoneme is None"),
        ({"silence": 3}, "model_index.json: silence is 3"),
        ({"silence": [[3]]}, "model_index.json: "),
        ({"transformer": None}, "model_index.json names None, which is no model class of transformers"),
        ({"transformer": ["transformers", "LlamaConfig"]}, "LlamaConfig.*, which is no model class of transformers"),
        ({"transformer": ["transformers", "GPT2LMHeadModel"]}, "transformer"),
    ],
)
def test_damaged_settings(copy: Path, change: dict, text: str) -> None:
    """What model_index.json says wrongly is named, and not used."""
    index = json.loads((copy / zoo.INDEX).read_text())
    (copy / zoo.INDEX).write_text(json.dumps(index | change))
    with pytest.raises(MmspecError, match=text):
        TextToSpeechPipeline.from_pretrained(copy)


def test_wrong_parts(pipe, speech_folder: Path, model_folder: Path) -> None:
    """An image model, an unknown option, a codec of another model, and what is no codec are refused."""
    for call, text in (
        (
            lambda: mmspec.pipeline("text-to-speech", model_folder),
            "holds a TextToImagePipeline, not a TextToSpeechPipeline",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, variant="fp16"),
            "unknown option of from_pretrained 'variant'",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, codec=MelCodec(width=8, codes=16)),
            "give parts of one model",
        ),
        (
            lambda: TextToSpeechPipeline.from_pretrained(speech_folder, codec=dac()),
            r"codec is a DacModel, which is no codec.*HubCodec\(model\)",
        ),
    ):
        with pytest.raises(MmspecError, match=text):
            call()
