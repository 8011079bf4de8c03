"""What the three pipelines share: arguments, progress bars, components, interrupts and short texts."""

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import mmspec
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.text_to_image import TextToImagePipeline

TASKS = ("text-to-image", "text-to-speech", "image-text-to-text")
CALLS = {
    "text-to-image": ("a red heart",),
    "text-to-speech": ("Hello there.",),
    "image-text-to-text": (Image.new("RGB", (40, 30), "red"), "what is this?"),
}


@pytest.fixture(scope="module")
def pipes(model_folder: Path, speech_folder: Path, vision_folder: Path) -> dict[str, Pipeline]:
    folders = dict(zip(TASKS, (model_folder, speech_folder, vision_folder)))
    loaded = {task: mmspec.pipeline(task, folder, device="cpu", dtype="fp64") for task, folder in folders.items()}
    loaded["text-to-image"].set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("task", TASKS)
def test_components(pipes, task: str) -> None:
    """A pipeline that is built from the components of another gives its tokens, also with settings of its own."""
    pipe = pipes[task]
    twin = type(pipe)(**pipe.components)
    assert twin.temperature == pipe.temperature and twin.drafter == pipe.drafter
    assert twin(*CALLS[task], seed=7, drafter="jacobi").tokens == pipe(*CALLS[task], seed=7, drafter="jacobi").tokens
    other = type(pipe)(**pipe.components | {"temperature": 0.5})
    assert other.temperature == 0.5 and other.components["temperature"] == 0.5
    if task == "text-to-image":
        assert other.config.max_prompt_tokens == 48


def test_diffusers_loads_it(pipes, model_folder: Path) -> None:
    """`DiffusionPipeline.from_pretrained` knows the class once mmspec's is imported."""
    found = DiffusionPipeline.from_pretrained(model_folder, torch_dtype=torch.float64)
    assert isinstance(found, TextToImagePipeline)
    found.to(torch.float64)
    found.set_progress_bar_config(disable=True)
    assert found("a red heart", seed=7).tokens == pipes["text-to-image"]("a red heart", seed=7).tokens


@pytest.mark.parametrize("task", TASKS)
def test_interrupt_of_diffusers(pipes, task: str) -> None:
    """`_interrupt` ends a generation after the round, in a session of its own too."""
    pipe, seen = pipes[task], []

    def watch(pipe, step: int, position: int, found: dict) -> None:
        seen.append(step)
        pipe._interrupt = True

    options = {"seed": 3, "temperature": 1.0, "drafter": "none", "callback_on_step_end": watch}
    pipe(*CALLS[task], **options)
    pipe.session()(*CALLS[task], **options)
    assert seen == [0, 0] and pipe._interrupt is True is pipe.interrupt


@pytest.mark.parametrize("task", TASKS)
def test_generators(pipes, task: str) -> None:
    """A generator decides the seeds."""
    pipe = pipes[task]
    first, second = (pipe(*CALLS[task], generator=torch.Generator().manual_seed(8), temperature=1.0) for _ in range(2))
    assert first.seeds == second.seeds and first.tokens == second.tokens
    with pytest.raises(MmspecError, match="both seed and generator were given"):
        pipe(*CALLS[task], generator=torch.Generator(), seed=1)


def test_several_answers_and_speeches(pipes) -> None:
    """Batches and copies count seeds up, and equal what singles give."""
    answers = pipes["image-text-to-text"]
    out = answers(*CALLS["image-text-to-text"], num_return_sequences=2, seed=5, temperature=1.0)
    assert out.texts == [answers(*CALLS["image-text-to-text"], seed=seed, temperature=1.0).text for seed in (5, 6)]
    with pytest.warns(UserWarning, match="text is the first of 2 answers: use texts"):
        assert out.text == out.texts[0]
    speech = pipes["text-to-speech"]
    outs = speech(["Hello. You?", "Fine."], num_return_sequences=2, seed=5)
    assert [out.seeds for out in outs] == [[5, 6], [7, 8], [9], [10]]
    assert outs[1].tokens == speech("Hello. You?", seed=7).tokens and outs[3].tokens == speech("Fine.", seed=10).tokens
    for options, text in (
        ({"num_return_sequences": 0}, "num_return_sequences=0: give a whole number"),
        ({"text": []}, "text must be a string or a list of strings"),
        ({"text": ["Fine.", "You?"], "seed": [1, 2]}, "a list of seeds is for the sentences of one text"),
    ):
        with pytest.raises(MmspecError, match=text):
            speech(**({"text": "Hello."} | options))
    with pytest.raises(MmspecError, match="text must be a string, not list: give one text at a time"):
        speech.stream(["Fine."])
    with pytest.raises(MmspecError, match="num_return_sequences=0"):
        answers(*CALLS["image-text-to-text"], num_return_sequences=0)


@pytest.mark.parametrize("task", TASKS)
def test_progress_bars(pipes, task: str, capfd: pytest.CaptureFixture) -> None:
    """They are shown where they are asked for."""
    pipe = pipes[task]
    pipe.set_progress_bar_config(disable=False, desc="at work")
    pipe(*CALLS[task], seed=1)
    assert "at work" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(*CALLS[task], seed=1)
    assert capfd.readouterr().err == "" and pipe.dtype == torch.float64


@pytest.mark.parametrize(
    ("task", "options", "text"),
    [
        ("text-to-image", {"num_inference_steps": 20}, "takes no num_inference_steps: an autoregressive model has no"),
        ("text-to-image", {"height": 64}, "pictures have one size"),
        ("text-to-image", {"negative_prompt": "blue"}, "guidance is against the empty prompt"),
        ("text-to-image", {"guidence_scale": 2.0}, "unknown option 'guidence_scale': did you mean 'guidance_scale'"),
        ("text-to-image", {"num_return_sequences": 2}, "use num_images_per_prompt"),
        ("text-to-speech", {"speed": 1.5}, "takes no speed"),
        ("text-to-speech", {"voise": "ada"}, "unknown option 'voise': did you mean 'voice'"),
        ("image-text-to-text", {"do_sample": True}, "temperature=0 is greedy"),
        ("image-text-to-text", {"generate_kwargs": {}}, "give its entries as arguments"),
    ],
)
def test_foreign_arguments(pipes, task: str, options: dict, text: str) -> None:
    """Arguments of other libraries say what to do."""
    with pytest.raises(MmspecError, match=text):
        pipes[task](*CALLS[task], **options)


@pytest.mark.parametrize("task", TASKS)
def test_devices_that_are_not_there(pipes, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MmspecError, match="device 'cuda' is not available here: use one of cpu"):
        pipes[task].to("cuda")
    with pytest.raises(MmspecError, match="takes a device or a dtype of torch"):
        pipes[task].to("gpu")


@pytest.mark.parametrize("task", TASKS)
def test_one_kind_of_output(pipes, task: str) -> None:
    """`stats` is one object, and a printed output is short."""
    out = pipes[task](*CALLS[task], seed=1)
    assert isinstance(out.stats, GenerationStats) and out.stats.mean_acceptance_length >= 1
    assert len(repr(out)) < 400 and repr(out.stats) in repr(out) and "lossless" in repr(out)
    for part in pipes[task].stream(*CALLS[task], seed=1):
        assert len(repr(part)) < 300


def test_speech_in_a_notebook(pipes) -> None:
    """A player, and the old name of the statistics with a warning."""
    pytest.importorskip("soundfile")
    out = pipes["text-to-speech"]("Hello there.", seed=1)
    assert out._repr_html_().startswith('<audio controls src="data:audio/wav;base64,')
    with pytest.warns(DeprecationWarning, match="total is deprecated: use stats"):
        assert out.total.tokens == out.stats.tokens == sum(stats.tokens for stats in out.sentence_stats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = type(out)(22050, [], [], [])
        assert empty.stats.tokens == 0 and "&" not in repr(empty) and "<audio" not in empty._repr_html_()
