"""Features of sequences: those of the files are those that the target reads again."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmspec.drafters.examples import Example
from mmspec.pipelines import pipeline
from mmspec.train.capture import Reading
from mmspec.train.corpus import Corpus, CorpusSettings
from mmspec.train.drafter import DrafterSettings
from mmspec.train.features import from_files, online
from mmspec.train.stages import Training


def assert_same(one: Example, other: Example) -> None:
    """Equal, features but for the rounding of other batches."""
    assert torch.equal(one.tokens, other.tokens)
    assert (one.seed, one.temperature, one.guidance, one.draw) == (
        *(other.seed, other.temperature, other.guidance, other.draw),
    )
    torch.testing.assert_close(one.features, other.features, atol=1e-10, rtol=1e-10)
    assert (one.prompt is None) == (other.prompt is None)
    if one.prompt is not None and other.prompt is not None:
        assert torch.equal(one.prompt.ids, other.prompt.ids) and torch.equal(one.prompt.is_text, other.prompt.is_text)
        torch.testing.assert_close(one.prompt.hidden, other.prompt.hidden, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(one.prompt.visual, other.prompt.visual, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ["pictures", "questions"])
def test_files_are_what_is_read_again(kind: str, model_folder: Path, vision_folder: Path, tmp_path: Path) -> None:
    """Sequences of several jobs, out of order and more than once: guided ones in both branches, and questions with
    their prompts, some with a picture.
    """
    rows: list[dict] = [{"prompt": f"a cat {number}"} for number in range(10)]
    if kind == "pictures":
        pipe = pipeline("text-to-image", model_folder, device="cpu", dtype="fp64")
        rows = [row | {"guidance": 1.0 + number % 2} for number, row in enumerate(rows)]
    else:
        pipe = pipeline("image-text-to-text", vision_folder, device="cpu", dtype="fp64")
        Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
        red = str(tmp_path / "red.png")
        rows = [row | ({"image": red} if number % 2 else {}) for number, row in enumerate(rows)]
    with_prompts = kind == "questions"
    reading = Reading(with_prompts, (0, 1) if with_prompts else ())
    settings = CorpusSettings(batch=3, length=7, held_out=2, options={"temperature": 0.7})
    corpus = Corpus(pipe, rows, settings, tmp_path / "work")
    corpus.generate()
    corpus.capture(reading)
    facts = corpus.sequences("train") + corpus.sequences("validation")
    wanted = [facts[-1], *facts[::-2], facts[-1], facts[0]]
    written, read = from_files(corpus, reading)(wanted), online(corpus, reading)(wanted)
    for chosen, one, other in zip(wanted, written, read, strict=True):
        assert_same(one, other)
        assert len(one.tokens) == chosen.tokens and one.features.shape[:2] == (1 + corpus.guided, chosen.tokens)
        assert (one.prompt is not None) == with_prompts
        if one.prompt is not None:
            assert one.entered is not None and one.entered.shape == (chosen.tokens, 2 * pipe.target.hidden_size)
            assert one.prompt.hidden.shape[1] == one.entered.shape[1]
            assert (len(one.prompt.ids), len(one.prompt.visual)) == (chosen.prompt, chosen.visual)
            assert len(one.prompt.hidden) == chosen.prompt - 1 and int((~one.prompt.is_text).sum()) == chosen.visual
    assert {example.guidance for example in written} == ({1.0, 2.0} if kind == "pictures" else {1.0})
    assert {example.temperature for example in written} == {0.7, 0.0}
    assert len({facts.visual > 0 for facts in wanted}) == 1 + with_prompts


def test_held_out_sequences_are_chosen_by_prompt(model_folder: Path, tmp_path: Path) -> None:
    """What calibrates while a checkpoint is measured are sequences of other prompts, whatever their jobs."""
    pipe = pipeline("text-to-image", model_folder, device="cpu", dtype="fp32")
    rows = [{"prompt": f"a cat {number}", "guidance": 3.0 - number % 3} for number in range(20)]
    corpus = Corpus(pipe, rows, CorpusSettings(batch=4, length=6, held_out=4), tmp_path / "work")
    corpus.generate()
    corpus.capture(Reading())
    training = Training(corpus, DrafterSettings.of("medusa"), tmp_path / "out", "cpu")
    *others, last = corpus.splits["validation"]
    sampled, greedy = training.held_out([last])
    answers = {
        (row, job.temperature > 0): tokens
        for job in corpus.jobs
        if job.split == "validation"
        for row, tokens in zip(job.rows, corpus.answers(job)["tokens"], strict=True)
    }
    assert [one.tokens.tolist() for one in sampled] == [answers[last, True]] and sampled[0].seed >= 0
    assert [one.tokens.tolist() for one in greedy] == [answers[last, False]] and greedy[0].temperature == 0
    assert [len(examples) for examples in training.held_out(others)] == [3, 3]
