"""Speaking with CSM: a folder as it is released, loaded by the public way."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_csm import BOOKS, CODES, FRAME, csm, csm_processor, save_csm

import mmspec
from mmspec.cli import main
from mmspec.errors import MmspecError
from mmspec.pipelines.csm import CsmSpeaker
from mmspec.pipelines.family_speech import FamilySpeechPipeline
from mmspec.pipelines.reference import Reference

TEXT = "hello there."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_csm(tmp_path_factory.mktemp("models") / "csm")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> FamilySpeechPipeline:
    made = mmspec.pipeline("text-to-speech", folder, device="cpu", dtype="fp64")
    assert isinstance(made, FamilySpeechPipeline) and isinstance(made.speaker, CsmSpeaker)
    made.transformer.codec_model.double()
    return made


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second at another rate."""
    path = tmp_path_factory.mktemp("sounds") / "voice.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (8000, 2)), 16_000)
    return path


def shorten(pipe: FamilySpeechPipeline, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """Texts of at most so many frames."""
    monkeypatch.setattr(pipe.speaker, "longest", lambda text: frames * BOOKS)


@pytest.mark.filterwarnings("ignore:sentence 1 did not end")
@pytest.mark.parametrize("heard", [False, True])
def test_greedy_speech_is_its_own(
    pipe: FamilySpeechPipeline, recording: Path, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """equality: the sound of greedy codes is what `generate(output_audio=True)` gives, with a recording or without."""
    shorten(pipe, monkeypatch, 6)
    turn = {"role": "3", "content": [{"type": "text", "text": TEXT}]}
    turns, reference = [turn], None
    if heard:
        reference = Reference(recording, "good day")
        _, samples = pipe.speaker.listen(reference)
        sound = {"type": "audio", "path": samples.numpy()}
        turns = [{"role": "3", "content": [{"type": "text", "text": "good day"}, sound]}, turn]
    inputs = csm_processor().apply_chat_template(turns, tokenize=True, return_dict=True)
    if heard:
        inputs["input_values"] = inputs["input_values"].double()
    options = dict(do_sample=False, depth_decoder_do_sample=False, max_new_tokens=6)
    (wanted,) = csm().generate(**inputs, **options, output_audio=True)
    for drafter in ("none", "jacobi"):
        spoken = pipe(TEXT, voice="3", temperature=0.0, drafter=drafter, reference=reference, seed=1)
        assert spoken.sampling_rate == 24_000 and len(wanted) == 6 * FRAME
        torch.testing.assert_close(spoken.audio[: len(wanted)].double(), wanted.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:sentence 1 did not end")
def test_chunks_and_seeds(pipe: FamilySpeechPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream gives the whole; the seed decides, whatever drafts; the authors' sampling is the default."""
    shorten(pipe, monkeypatch, 9)
    assert pipe.sampling_kwargs({})["temperature"] == 0.9 and pipe.sampling_kwargs({})["top_k"] == 50
    plain = pipe(TEXT, seed=4, drafter="none")
    assert pipe(TEXT, seed=4, drafter="lookup").tokens == plain.tokens != pipe(TEXT, seed=5).tokens
    chunks = [chunk.audio for chunk in pipe.stream(TEXT, seed=4, drafter="jacobi", piece=0.15)]
    assert len(chunks) > 2
    torch.testing.assert_close(torch.cat(chunks), plain.audio, atol=1e-4, rtol=1e-3)


def test_frames_of_zeros_end(pipe: FamilySpeechPipeline) -> None:
    """A text ends with a frame whose codes, but for the last, are zero; its codes are none of the sound's."""
    speaker, frame = pipe.speaker, [5, 0, 7, CODES - 1]
    zeros = [0] * (BOOKS - 1) + [9]
    assert speaker.over([*frame, *zeros]) and not speaker.over(frame) and not speaker.over([*frame, *zeros[:-1]])
    size = CODES
    expected = [5, size, 7 + 2 * size, 4 * size - 1]
    assert speaker.codes([*frame, *zeros]) == speaker.codes([*frame, 0, 0]) == expected
    stop = pipe.stop(80)
    assert stop.trim(0, [], [*frame, *zeros, *frame]) == ([*frame, *zeros], True)


def test_what_is_refused(pipe: FamilySpeechPipeline, recording: Path) -> None:
    """Voices that are no numbers, recordings without their text, and control tokens in texts."""
    with pytest.raises(MmspecError, match="voice"):
        pipe(TEXT, voice="tara")
    with pytest.raises(MmspecError, match="CSM needs what is said in the reference"):
        pipe(TEXT, reference=recording)
    with pytest.raises(MmspecError, match="a control token of the model"):
        pipe("hello <|AUDIO|>")


@pytest.mark.filterwarnings("ignore:sentence 1 did not end")
def test_command(folder: Path, recording: Path, tmp_path: Path) -> None:
    """`mmspec speak TEXT --model FOLDER --voice 0 --reference WAV --reference-text T`."""
    out = tmp_path / "out.wav"
    options = ["--voice", "0", "--reference", str(recording), "--reference-text", "good day", "--seed", "1"]
    with pytest.raises(SystemExit, match="0"):
        main(["speak", "hi", "--model", str(folder), *options, "-o", str(out)])
    samples, rate = soundfile.read(out)
    assert rate == 24_000 and len(samples) > FRAME
