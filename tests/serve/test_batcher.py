"""Continuous batching: many threads at once get what each gets alone; queues, cancelling, failing, closing."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny import prompts, text_target

import mmspec
from mmspec.engine.accept import acceptance
from mmspec.engine.cache import TreeLayer
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines.endings import StallDetector
from mmspec.serve.batcher import Batcher, Busy, Closing

PROMPTS = ["a red heart", "a cat face", "a red cat, 3d style", "a heart"]


@pytest.fixture
def pipe(model_folder: Path):
    found = mmspec.pipeline("text-to-image", str(model_folder), device="cpu", dtype="fp64")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def batcher(pipe):
    pipe.runner = Batcher(pipe.target, pipe.folder, rows=6, waiting=20)
    yield pipe.runner
    pipe.runner.close()


@pytest.mark.slow
def test_threads_get_what_they_get_alone(pipe) -> None:
    """Equality (fp64): different laws, lengths of prompts, drafters, and numbers of rows, at once."""
    asked = [
        dict(
            prompt=PROMPTS[i % 4],
            seed=i,
            num_images_per_prompt=1 + i % 3,
            guidance_scale=(1.0, 2.0)[i % 2],
            temperature=(0.0, 1.0, 0.5)[i % 3],
        )
        for i in range(12)
    ]
    drafters = ["jacobi", "lookup", "none"]
    alone = [pipe(**one).tokens for one in asked]
    pipe.runner = Batcher(pipe.target, pipe.folder, rows=6, waiting=20)
    try:
        with ThreadPoolExecutor(12) as pool:
            found = list(
                pool.map(lambda i: list(pipe.session().stream(**asked[i], drafter=drafters[i % 3]))[-1], range(12))
            )
    finally:
        pipe.runner.close()
    assert [part.tokens for part in found] == alone
    for i, part in enumerate(found):
        assert part.stats.drafter == drafters[i % 3] and part.stats.tokens == 64 * len(alone[i]) and part.stats.lossless


def test_speech_sentence_by_sentence(speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of several sentences share passes."""
    pipe = mmspec.pipeline("text-to-speech", str(speech_folder), device="cpu", dtype="fp64")
    texts = ["Hello there, how are you? I am fine.", "Yes.", "And you? Good. Well then."]
    # Sentences have little room, and not all end by themselves.
    short = StallDetector(40, pipe.silence)
    monkeypatch.setattr(type(pipe), "stall", property(lambda pipe: short))
    with pytest.warns(UserWarning, match="did not end by itself"):
        alone = [pipe(text, seed=3).tokens for text in texts]
        pipe.runner = Batcher(pipe.target, pipe.folder)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda text: pipe(text, seed=3, drafter="vadusa").tokens, texts))
        pipe.runner.close()
    assert found == alone


def test_rows_share_passes(pipe, batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of one law, by copies of the pipeline as the server makes them, are in one batch; calls of another in
    another.
    """
    sizes = set()
    honest = type(pipe.target).forward

    def forward(self, state, tree):
        sizes.add((state.rows, state.guidance))
        return honest(self, state, tree)

    monkeypatch.setattr(type(pipe.target), "forward", forward)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: list(pipe.session().stream(PROMPTS[i % 4], seed=i, guidance_scale=(2.0, 3.0)[i % 2])),
                range(8),
            )
        )
    assert max(rows for rows, guidance in sizes if guidance == 2.0) >= 2 and max(rows for rows, _ in sizes) <= 6
    assert batcher.load == (0, 0)


def test_a_full_queue(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call runs, the next waits, one more is turned away; the others get all of theirs."""
    going, honest = threading.Event(), type(pipe.target).forward

    def forward(self, state, tree):
        assert going.wait(60)
        return honest(self, state, tree)

    monkeypatch.setattr(type(pipe.target), "forward", forward)
    pipe.runner = Batcher(pipe.target, pipe.folder, rows=1, waiting=1)
    with ThreadPoolExecutor(2) as pool:
        calls = []
        for seed, load in enumerate([(1, 0), (1, 1)]):
            calls.append(pool.submit(lambda seed: list(pipe.stream(PROMPTS[seed], seed=seed)), seed))
            until = time.monotonic() + 60
            while pipe.runner.load != load and time.monotonic() < until:
                time.sleep(0.01)
            assert pipe.runner.load == load
        with pytest.raises(Busy, match="1 calls are waiting already"):
            list(pipe.stream(PROMPTS[2], seed=1))
        going.set()
        assert [len(call.result()[-1].tokens[0]) for call in calls] == [64, 64]
    pipe.runner.close()


def test_leaving_gives_the_place_back(pipe) -> None:
    """A closed iterator's rows leave at the next round; a call that waited is taken."""
    pipe.runner = Batcher(pipe.target, pipe.folder, rows=2, waiting=4)
    left = pipe.stream(PROMPTS[0], seed=1, num_images_per_prompt=2, drafter="none")
    next(left)
    left.close()
    assert len(list(pipe.stream(PROMPTS[1], seed=1))[-1].tokens[0]) == 64
    assert pipe.runner.load == (0, 0)
    pipe.runner.close()


def test_what_fails_fails_alone(pipe, batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a round reaches the calls of that batch; the thread goes on."""
    honest = type(pipe.target).forward

    def forward(self, state, tree):
        if state.guidance == 5.0:
            raise RuntimeError("out of memory")
        return honest(self, state, tree)

    monkeypatch.setattr(type(pipe.target), "forward", forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(pipe.stream(PROMPTS[0], seed=1, guidance_scale=5.0))
    assert len(list(pipe.stream(PROMPTS[0], seed=1))[-1].tokens[0]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafter": object()}, "give its name, not an instance"),
        ({"drafter": "nonsense"}, "unknown drafter"),
        ({"drafter": "hawk"}, "has no weights"),
        ({"num_images_per_prompt": 7}, "7 rows were asked for and a batch has 6"),
    ],
)
def test_refused(pipe, batcher, options: dict, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        list(pipe.stream(PROMPTS[0], **options))


def test_what_dies_leaves_nobody_waiting(pipe, batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure where none is expected ends the thread, and every call with it."""
    monkeypatch.setattr(batcher, "_admit", lambda job: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda failure: None)
    with pytest.raises(Closing, match="nothing is served any more"):
        list(pipe.stream(PROMPTS[0], seed=1))
    with pytest.raises(Closing):
        list(pipe.stream(PROMPTS[0], seed=1))
    assert not batcher.alive


def test_a_join_that_fails_midway(pipe, batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is lost with all who are in it, and the next call is served."""
    honest, going = TreeLayer.join, threading.Event()

    def join(self, other):
        if self.owner.layers[-1] is self:
            raise RuntimeError("out of memory")
        return honest(self, other)

    monkeypatch.setattr(TreeLayer, "join", join)
    forward = type(pipe.target).forward
    monkeypatch.setattr(
        type(pipe.target), "forward", lambda self, state, tree: going.wait(60) and forward(self, state, tree)
    )
    with ThreadPoolExecutor(2) as pool:
        calls = []
        for _ in range(2):
            calls.append(pool.submit(lambda: list(pipe.session().stream(PROMPTS[0], seed=1, drafter="none"))))
            time.sleep(0.3)
        going.set()
        for call in calls:
            with pytest.raises(RuntimeError, match="out of memory"):
                call.result()
    assert batcher.load == (0, 0)
    assert len(list(pipe.stream(PROMPTS[0], seed=1))[-1].tokens[0]) == 64


def test_nothing_stays_behind(pipe, batcher) -> None:
    """Calls of many laws leave no batches, caches or drafters."""
    before = {name: set(vars(guesser)) for name, guesser in batcher.drafters.items()}
    for i in range(6):
        list(pipe.session().stream(PROMPTS[0], seed=1, temperature=0.5 + i / 10))
    assert not batcher._batches and batcher.load == (0, 0)
    assert {name: set(vars(guesser)) for name, guesser in batcher.drafters.items()} == before


def test_newcomers_do_not_stop_the_others() -> None:
    """Calls of one token, which join one after the other, take no round away from a call of many."""
    target = text_target()
    batcher = Batcher(target, None, rows=4)
    over = threading.Event()

    def call(length: int, seed: int) -> GenerationStats:
        text = prompts([[1, 3, 4]])
        stats, run = GenerationStats(), batcher(target, None, "none", text, length)
        law = dict(sampling=SamplingOptions(1.0), rule=acceptance("exact"), stats=stats)
        assert sum(len(step.tokens[0]) for step in run(text, 1, Stop(length), seeds=[seed], **law)) == length
        return stats

    def short(seed: int) -> int:
        calls = 0
        while not over.is_set() and calls < 5000:
            call(1, seed)
            calls += 1
        return calls

    with ThreadPoolExecutor(7) as pool:
        calls = [pool.submit(short, seed) for seed in range(6)]
        stats = pool.submit(call, 60, 0).result()
        over.set()
        assert sum(each.result() for each in calls) < 6 * 5000
    batcher.close()
    assert (stats.rounds, stats.nodes) == (60, 60)


def test_closing(pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are not done raise, and later ones are turned away."""
    going, honest = threading.Semaphore(1), type(pipe.target).forward
    monkeypatch.setattr(
        type(pipe.target), "forward", lambda self, state, tree: going.acquire(timeout=60) and honest(self, state, tree)
    )
    pipe.runner = Batcher(pipe.target, pipe.folder, rows=2, waiting=4)
    running = pipe.stream(PROMPTS[0], seed=1, drafter="none")
    next(running)
    closing = threading.Thread(target=pipe.runner.close)
    closing.start()
    going.release(5)
    closing.join()
    with pytest.raises(Closing, match="nothing is served any more"):
        list(running)
    with pytest.raises(Closing):
        list(pipe.stream(PROMPTS[0], seed=1))
    assert not pipe.runner.alive
