"""Speech with codecs of transformers and with a codec of one's own."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from speech_cases import CLOSE, TEXT

from mmspec import zoo
from mmspec.codecs.hub import HubCodec
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.targets.speech import SpeechTarget

pytest.importorskip("soundfile")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_hub_codec(hub, temperature: float) -> None:
    """Frames of three tokens: each from its codebook, the end only between frames; equal with every drafter; chunks
    join to the whole.
    """
    wanted = hub(TEXT, seed=2, drafter="none", temperature=temperature)
    assert len(wanted.tokens[0]) > 30 and all(token // 16 == place % 3 for place, token in enumerate(wanted.tokens[0]))
    assert wanted.ended != ["end"] or len(wanted.tokens[0]) % 3 == 0
    vadusa = VadusaDrafter(hidden_size=32, heads=4).to(torch.float64)
    for drafter in ("lookup", "jacobi", vadusa):
        found = hub(TEXT, seed=2, drafter=drafter, temperature=temperature)
        assert found.tokens == wanted.tokens and torch.equal(found.audio, wanted.audio)
    joined = torch.cat([chunk.audio for chunk in hub.stream(TEXT, seed=2, temperature=temperature)])
    assert wanted.sampling_rate == 800 and len(joined) == len(wanted.audio) == len(wanted.tokens[0]) // 3 * 40
    assert (joined - wanted.audio).abs().max() < CLOSE * wanted.audio.abs().max() and wanted.audio.std() > 1e-3


def test_hub_codec_ends_between_frames(hub, monkeypatch) -> None:
    """A model that would rather end at once, or in the middle of a frame, ends after whole frames."""
    assert hub.target, "built before the logits are changed, or its probe refuses it"
    honest = torch.nn.functional.one_hot(torch.tensor(hub.end), hub.end + 1).double()
    plain = SpeechTarget.logits
    monkeypatch.setattr(SpeechTarget, "logits", lambda self, *given: plain(self, *given) + 2.5 * honest)
    ended = [hub(TEXT, seed=seed) for seed in (3, 5, 8)]
    assert [out.ended for out in ended] == [["end"]] * 3 and all(len(out.tokens[0]) % 3 == 0 for out in ended)


def test_hub_codec_is_saved(hub, tmp_path: Path) -> None:
    """A codec of transformers is saved with its codebooks and context, and loads; damaged, its file is named."""
    hub.codec = HubCodec(hub.codec.model, context=(30, 9))
    hub.save_pretrained(tmp_path)
    again = TextToSpeechPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert isinstance(again.codec, HubCodec) and again.codec.context == (30, 9) and again.codec.frame_tokens == 3
    wanted, found = hub(TEXT, seed=2), again(TEXT, seed=2)
    assert found.tokens == wanted.tokens and torch.allclose(found.audio, wanted.audio, atol=CLOSE)
    assert again.to("cpu").codec.model.device.type == "cpu"
    index = json.loads((tmp_path / zoo.INDEX).read_text())
    for options in (None, {"codebooks": 3}, {"codebooks": 4, "context": [1, 2]}):
        (tmp_path / zoo.INDEX).write_text(json.dumps(index | {"codec": options}))
        with pytest.raises(MmspecError, match="model_index.json: codec is |codebooks is 4"):
            TextToSpeechPipeline.from_pretrained(tmp_path)
    (tmp_path / zoo.INDEX).write_text(json.dumps(index))
    file = tmp_path / "codec" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MmspecError, match="codec/model.safetensors is truncated"):
        TextToSpeechPipeline.from_pretrained(tmp_path)


class Clicks:
    """Somebody's own codec: a click for every token."""

    sampling_rate, vocabulary_size, frame_tokens, frame_samples, context = 100, 32, 1, 4, (0, 0)

    def encode(self, audio, sampling_rate):
        raise NotImplementedError

    def decode(self, tokens):
        return torch.nn.functional.pad(tokens[..., None] * self.loudness / 32, (0, 3)).flatten(1)

    def to(self, device):
        return self

    loudness = 1.0


class SavedClicks(Clicks):
    """The same, of a kind that other packages could register."""

    kind = "clicks"

    def __init__(self, loudness: float = 1.0):
        self.loudness = loudness

    @property
    def options(self) -> dict:
        return {"loudness": self.loudness}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    @classmethod
    def from_pretrained(cls, folder: Path, **options) -> "SavedClicks":
        assert (folder / "config.json").is_file()
        return cls(**options)


def test_own_codec(pipe, tmp_path: Path) -> None:
    """Any object that follows the protocol speaks; it cannot be saved, which is said before anything is written."""
    own = TextToSpeechPipeline(pipe.tokenizer, pipe.transformer, Clicks(), ["ada"]).to("cpu")
    out = own(TEXT, seed=4)
    assert (out.audio[::4] * 32).long().tolist() == out.tokens[0] and own.drafter == "jacobi"
    with pytest.raises(
        MmspecError, match="a Clicks cannot be saved: save the parts yourself, and give codec= to from_pretrained"
    ):
        own.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_own_codec_is_saved(pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of a registered kind round-trips with the model, its options too."""
    from mmspec.codecs import registry

    monkeypatch.setitem(registry.KINDS, "clicks", f"{__name__}:SavedClicks")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(SavedClicks=SavedClicks))
    own = TextToSpeechPipeline(pipe.tokenizer, pipe.transformer, SavedClicks(0.5), ["ada"])
    own.save_pretrained(tmp_path / "saved")
    again = TextToSpeechPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.float64)
    assert isinstance(again.codec, SavedClicks) and again.codec.loudness == 0.5
    assert torch.equal(again(TEXT, seed=4).audio, own(TEXT, seed=4).audio)
