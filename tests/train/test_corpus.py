"""Prompts and answers: how they are split, who answers what and with which noise, and what is not done twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmspec.engine.loop import generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline
from mmspec.pipelines.base import Pipeline
from mmspec.train import corpus as corpus_module
from mmspec.train.capture import Reading
from mmspec.train.corpus import Corpus, CorpusSettings, split

LENGTH = 6
ROWS = [{"prompt": f"a cat {number}"} for number in range(20)]


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> Pipeline:
    return pipeline("text-to-image", model_folder, device="cpu", dtype="fp64")


def corpus(pipe: Pipeline, work: Path, rows: list[dict] = ROWS, greedy: bool = True, **settings: object) -> Corpus:
    given: dict = {"batch": 4, "length": LENGTH, "held_out": 3} | settings
    return Corpus(pipe, rows, CorpusSettings(**given), work, greedy)


@pytest.mark.parametrize("count", [5, 7, 20, 200])
def test_the_split_is_disjoint(count: int) -> None:
    """Every prompt has one purpose, a fifth at most is held out for each, and the seed alone decides."""
    parts = split(count, CorpusSettings(held_out=16))
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == list(range(count))
    assert len(parts["validation"]) == len(parts["test"]) == min(16, count // 5)
    assert parts == split(count, CorpusSettings(held_out=16))
    assert count < 20 or parts != split(count, CorpusSettings(held_out=16, seed=1))


def test_too_few_prompts(pipe: Pipeline, tmp_path: Path) -> None:
    """Duplicates count once."""
    with pytest.raises(MmspecError, match="^4 different prompts are too few to train on: give at least 5"):
        corpus(pipe, tmp_path, ROWS[:4] * 5)


def test_duplicates_are_removed(pipe: Pipeline, tmp_path: Path) -> None:
    """Else a prompt could be trained on and tested with."""
    assert corpus(pipe, tmp_path, ROWS * 2).rows == ROWS
    apart = [{"prompt": "a cat", "guidance": float(number)} for number in range(1, 7)]
    assert corpus(pipe, tmp_path, apart).rows == apart


def test_folders_tell_corpora_apart(pipe: Pipeline, tmp_path: Path) -> None:
    """Other prompts, another order of them, and other settings have another folder; the same have the same."""
    own = corpus(pipe, tmp_path)
    others = [corpus(pipe, tmp_path, ROWS[::-1]), corpus(pipe, tmp_path, seed=1), corpus(pipe, tmp_path, guidance=3.0)]
    assert own.folder == corpus(pipe, tmp_path, greedy=False).folder and own.folder.parent == tmp_path
    assert len({one.folder for one in (own, *others)}) == 4


def test_jobs(pipe: Pipeline, tmp_path: Path) -> None:
    """Prompts of a job share temperature and guidance; each sample has other noise; greedy ones come last."""
    rows = [row | {"guidance": 1.0 + index % 2, "temperature": index % 3 / 2} for index, row in enumerate(ROWS)]
    one = corpus(pipe, tmp_path, rows, samples=2)
    jobs, train = one.jobs, [job for job in one.jobs if job.split == "train"]
    assert [job.number for job in jobs] == list(range(len(jobs)))
    for job in jobs:
        assert 1 <= len(job.rows) <= 4 and job.own
        assert {rows[row]["guidance"] for row in job.rows} == {job.guidance}
    assert all({rows[row]["temperature"] for row in job.rows} == {job.temperature} for job in train)
    answered = sorted(row for job in train for row in job.rows)
    assert answered == sorted(one.splits["train"] * 2)
    seeds = [seed for job in train for seed in job.seeds]
    assert len(set(seeds)) == len(seeds)
    last = [job.temperature for job in jobs if job.split == "validation"]
    assert last == sorted(last, reverse=True) and set(last) == {pipe.temperature, 0.0}
    assert not any(job.split == "test" for job in jobs)
    without = corpus(pipe, tmp_path, rows, greedy=False, samples=2).jobs
    assert without == jobs[: len(without)] and all(job.split == "train" for job in without[-1:])


def test_a_greedy_model_is_sampled_for_validation(pipe: Pipeline, tmp_path: Path) -> None:
    """Sharpness and coupling are fitted to samples, even where the model's own answers are greedy."""
    jobs = corpus(pipe, tmp_path, options={"temperature": 0.0}).jobs
    assert {job.temperature for job in jobs if job.split == "train"} == {0.0}
    assert {job.temperature for job in jobs if job.split == "validation"} == {1.0, 0.0}


def test_answers_are_the_targets(pipe: Pipeline, tmp_path: Path) -> None:
    """Each is what the prompt alone gives with its seed, temperature and guidance."""
    rows = [row | {"guidance": 1.0 + index % 2} for index, row in enumerate(ROWS[:8])]
    one = corpus(pipe, tmp_path, rows)
    one.generate()
    for job in one.jobs:
        for row, seed, tokens in zip(job.rows, job.seeds, one.answers(job)["tokens"], strict=True):
            prompts, stop = pipe.encode_examples([rows[row]])
            guided, sampling = prompts.select(slice(None), job.guidance), SamplingOptions(job.temperature)
            alone = generate(pipe.target, guided, 1, replace(stop, length=LENGTH), sampling=sampling, seeds=[seed])
            assert alone.tokens == [tokens]
    assert len(one.sequences("train")) == len(one.splits["train"])
    assert [facts.tokens for facts in one.sequences("validation")] == [LENGTH, LENGTH]
    for facts in one.sequences("train"):
        assert facts.length == facts.tokens + facts.prompt and facts.prompt > 2 and facts.visual == 0


def test_what_is_there_is_kept(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run answers and reads nothing again but what is missing, and that alike."""
    one = corpus(pipe, tmp_path, ROWS[:10])
    with pytest.raises(MmspecError, match="is missing: run the stage generate first"):
        one.answers(one.jobs[0])
    one.generate()
    one.capture(Reading())
    files = {path: path.read_bytes() for path in one.folder.rglob("*.*")}
    lost = [one.answer_file(one.jobs[1]), one.feature_file(one.jobs[0], Reading())]
    for path in lost:
        path.unlink()
    calls: list[str] = []

    def counted(name: str, working: Callable) -> Callable:
        return lambda *args, **how: calls.append(name) or working(*args, **how)

    for name in ("generate", "read_features"):
        monkeypatch.setattr(corpus_module, name, counted(name, getattr(corpus_module, name)))
    again = corpus(pipe, tmp_path, ROWS[:10])
    again.generate()
    again.capture(Reading())
    assert calls == ["generate", "read_features"]
    assert {path: path.read_bytes() for path in one.folder.rglob("*.*")} == files


def test_answers_of_the_data(pipe: Pipeline, tmp_path: Path) -> None:
    """Lines keep what they bring, up to the limit, and have no noise; others, and validation, are the target's."""
    rows = [row | ({"tokens": [index] * 9} if index % 2 else {}) for index, row in enumerate(ROWS)]
    one = corpus(pipe, tmp_path, rows, answers="data")
    one.generate()
    counts = {True: 0, False: 0}
    for job in one.jobs:
        for place, row in enumerate(job.rows):
            tokens = one.answers(job)["tokens"][place]
            (example,) = one.read(job, [place], Reading())
            assert job.own == (job.split != "train" or row % 2 == 0)
            assert (tokens == [row] * LENGTH) == (not job.own) and example.tokens.tolist() == tokens
            assert example.seed == (job.seeds[place] if job.own and job.temperature else -1)
            assert example.temperature == (job.temperature if job.own else 1.0)
            counts[job.own] += 1
    assert counts[False] > 3 and counts[True] > 3
    assert all(job.own for job in corpus(pipe, tmp_path, rows).jobs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tokens": [3, 99]}, "has tokens beyond 0 to 23, or none: give other tokens"),
        ({"tokens": [-1]}, "has tokens beyond 0 to 23"),
        ({"answer": "a cat"}, "answers of a text-to-image model cannot be given as text: give their tokens"),
    ],
)
def test_answers_that_cannot_be(bad: dict, message: str, pipe: Pipeline, tmp_path: Path) -> None:
    """They are refused by name, and no file is left half."""
    one = corpus(pipe, tmp_path, [row | bad for row in ROWS], answers="data")
    with pytest.raises(MmspecError, match=message):
        one.generate()
    (job,) = (job for job in one.jobs if not job.own and job.rows == one.jobs[1].rows)
    assert not one.answer_file(job).exists()


def test_a_prompt_that_cannot_be_read(pipe: Pipeline, tmp_path: Path) -> None:
    """The error shows the line among those that are read with it."""
    rows = [*ROWS[:9], {"prompt": "a cat " * 60}]
    one = corpus(pipe, tmp_path, rows)
    with pytest.raises(MmspecError, match='^prompt {"prompt": "a cat a cat .*: .*tokens'):
        one.encode([0, 9, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": "mine"}, "answers are own or data, not 'mine'"),
        ({"samples": 0}, "samples must be 1 or more, not 0"),
        ({"batch": 0}, "batch must be 1 or more, not 0"),
        ({"held_out": 0}, "held_out must be 1 or more, not 0"),
    ],
)
def test_settings_that_are_wrong(settings: dict, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        CorpusSettings(**settings)


def test_answers_are_json(pipe: Pipeline, tmp_path: Path) -> None:
    """Anyone can look at what the target said."""
    one = corpus(pipe, tmp_path, ROWS[:5])
    one.generate([one.jobs[0]])
    answers = json.loads(one.answer_file(one.jobs[0]).read_text())
    assert answers.keys() == {"tokens", "prompts", "visual"} and not one.answer_file(one.jobs[1]).exists()
    assert torch.tensor(answers["tokens"]).shape == (1, LENGTH)
