"""The loop: stops, streams, cancels, counts."""

import re

import pytest
import torch
from tiny import GRID, OFFSET, TEXTS, OracleDrafter, drafter, image_target, plain, prompts, text_target

from mmspec.engine.loop import Stop, generate, stream
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError

LENGTH = 30


@pytest.fixture(scope="module")
def answers() -> list[list[int]]:
    """What plain decoding says."""
    return plain(text_target(), LENGTH)


def oracle(answers: list[list[int]], **options) -> OracleDrafter:
    return OracleDrafter(answers, text_target().vocabulary_size, **options)


@pytest.mark.parametrize("seed", range(5))
def test_eos_inside_an_accepted_path(answers, seed: int) -> None:
    """A row ends with its eos token, though the accepted path went on; other rows go on to their own."""
    eos = answers[0][7]
    found = generate(
        text_target(), prompts(), 3, Stop(LENGTH, frozenset({eos})), oracle(answers, seed=seed, honesty=1.0), seeds=5
    )
    wanted = [row[: row.index(eos) + 1] if eos in row else row for row in answers]
    assert found.tokens == wanted
    assert found.tokens[0][-1] == eos


def test_custom_stop(answers) -> None:
    """`when` sees a row and its tokens, for each row its own."""
    stop = Stop(LENGTH, when=lambda row, tokens: len(tokens) == (4, 9, 200)[row])
    found = generate(text_target(), prompts(), 3, stop, oracle(answers), seeds=5)
    assert found.tokens == [answers[0][:4], answers[1][:9], answers[2]]


@pytest.mark.parametrize("length", [0, 1, 2, 7])
@pytest.mark.parametrize("name", ["none", "jacobi", "lookup", "recycling", "hawk-path"])
def test_never_more_than_length(name: str, length: int) -> None:
    """Exactly `length` tokens and the same ones, also for lengths shorter than a tree; zero asks for nothing."""
    target = image_target()
    found = generate(target, prompts(), 3, Stop(length), drafter(name, target), seeds=5)
    assert found.tokens == plain(target, length) and all(len(row) == length for row in found.tokens)
    assert found.stats.tokens == 3 * length


def test_stream_equals_generate(answers) -> None:
    """Round by round the same tokens leave; a row that has stopped gives none; every round gives something."""
    rows: list[list[int]] = [[], [], []]
    for step in stream(text_target(), prompts(), 3, Stop(LENGTH), oracle(answers), seeds=5):
        assert any(step.tokens) and step.nodes >= 1
        for row, new in zip(rows, step.tokens, strict=True):
            assert not (new and len(row) == LENGTH)
            row += new
    assert rows == answers


def test_cancel_between_rounds(answers) -> None:
    """A true cancel() ends the stream before the next round; what had left is a beginning of the answer."""
    rounds = []
    for step in stream(text_target(), prompts(TEXTS[:1]), 1, Stop(LENGTH), seeds=5, cancel=lambda: len(rounds) == 4):
        rounds.append(step.tokens[0])
    assert len(rounds) == 4 and sum(rounds, []) == answers[0][:4]
    assert list(stream(text_target(), prompts(TEXTS[:1]), 1, Stop(LENGTH), cancel=lambda: True)) == []


def test_closing_the_stream(answers) -> None:
    """A closed stream ends; gradients work again, and a new stream starts from the beginning."""
    target = text_target()
    steps = stream(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), seeds=5)
    assert next(steps).tokens == [answers[0][:1]]
    assert not torch.is_inference_mode_enabled()
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)
    assert generate(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), seeds=5).tokens == answers[:1]


def test_seeds(answers) -> None:
    """One number counts up over the rows; a list is taken as it is; a list of the wrong length is refused."""
    assert generate(text_target(), prompts(), 3, Stop(LENGTH), seeds=[5, 6, 7]).tokens == answers
    text = "2 seeds were given for 3 rows: give one each, or a single number"
    with pytest.raises(MmspecError, match=f"^{re.escape(text)}$"):
        generate(text_target(), prompts(), 3, Stop(LENGTH), seeds=[5, 6])


def test_empty_and_long_prompts() -> None:
    """A prompt without tokens and one beyond the model's positions are refused."""
    with pytest.raises(MmspecError, match="^a prompt has no tokens: give at least a beginning-of-sequence token$"):
        generate(text_target(), prompts([[1], []]), 2, Stop(3))
    text = "500 prompt tokens and 200 new ones exceed the model's 512 positions: shorten the prompt or "
    with pytest.raises(MmspecError, match=f"^{text}ask for fewer tokens$"):
        generate(text_target(), prompts([[1] * 500]), 1, Stop(200))


def test_statistics(answers) -> None:
    """Tokens, rounds and seconds agree with each other and with what was returned."""
    stats = GenerationStats()
    found = generate(text_target(), prompts(), 3, Stop(LENGTH), oracle(answers), seeds=5, stats=stats)
    assert found.stats is stats
    assert [sum(runs) for runs in stats.runs] == [LENGTH] * 3 and stats.tokens == 3 * LENGTH
    assert stats.rounds == max(map(len, stats.runs))
    assert stats.mean_acceptance_length == stats.tokens / sum(map(len, stats.runs))
    assert stats.mean_acceptance_length > 2
    assert sum(stats.seconds.values()) == pytest.approx(stats.total)
    assert min(stats.seconds.values()) >= 0 and stats.seconds["target"] > 0
    assert stats.tokens_per_second == pytest.approx(stats.tokens / stats.total)
    assert stats.cache_bytes > 0 and (stats.drafter, stats.acceptance, stats.lossless) == ("oracle", "exact", True)


def test_plain_decoding_is_one_token_a_round() -> None:
    """Without a drafter the mean acceptance length is 1 and each round has one node."""
    stats = generate(text_target(), prompts(), 3, Stop(8)).stats
    assert (stats.mean_acceptance_length, stats.rounds, stats.nodes, stats.drafter) == (1.0, 8, 8, "none")


def test_nothing_generated() -> None:
    """No tokens: no rounds, no division by zero."""
    stats = generate(text_target(), prompts(), 3, Stop(0)).stats
    assert (stats.tokens, stats.rounds, stats.mean_acceptance_length) == (0, 0, 0.0)
    assert set(stats.as_dict()) >= {
        "drafter",
        "acceptance",
        "lossless",
        "tokens",
        "mean_acceptance_length",
        "tokens_per_second",
        "seconds",
    }


@pytest.mark.parametrize(
    ("rule", "lossless"),
    [("exact", True), ("rejection", True), ("tolerance:1", True), ("tolerance:3", False), ("typical", False)],
)
def test_results_say_whether_they_are_lossless(rule: str, lossless: bool) -> None:
    """The statistics carry the rule's name and its promise."""
    found = generate(text_target(), prompts(), 3, Stop(6), drafter("jacobi", text_target()), rule=rule)
    assert (found.stats.acceptance, found.stats.lossless) == (rule, lossless)
    assert all(len(row) == 6 for row in found.tokens)


def test_one_drafter_serves_generation_after_generation(answers) -> None:
    """Nothing of the last generation leaks into the next."""
    target = image_target()
    for name in ("lookup", "jacobi", "medusa", "hawk", "hawk-path"):
        guess = drafter(name, target)
        wanted = generate(target, prompts(), 3, Stop(12), drafter(name, target), seeds=5)
        generate(target, prompts([[1, 2]]), 1, Stop(20), guess, seeds=3)
        again = generate(target, prompts(), 3, Stop(12), guess, seeds=5)
        assert (again.tokens, again.stats.runs) == (wanted.tokens, wanted.stats.runs)


def test_rows_end_where_the_grid_says() -> None:
    """End-of-row tokens stand at the end of each row of the grid and nowhere else, with any drafter."""
    target = image_target()
    for name in ("none", "jacobi", "hawk", "hawk-path"):
        for row in generate(
            target, prompts(guidance=3.0), 3, Stop(GRID.tokens), drafter(name, target), sampling=SamplingOptions(1.0)
        ).tokens:
            assert [i for i, token in enumerate(row) if token == target.vocabulary_size - 1] == list(
                range(GRID.width, GRID.tokens, GRID.stride)
            )
            assert all(0 <= token < target.vocabulary_size for token in row)


def test_prompts_outside_the_generated_vocabulary() -> None:
    """Prompt ids outside the vocabulary are the negative tokens -1 - id, and never the target's output."""
    target = image_target()
    state = target.prefill(prompts([[1, 2], [OFFSET + 3, 2]]), 4)
    assert state.history(0) == [-2, -3] and state.history(1) == [3, -3]
    assert state.history(0) == [-2, -3] and state.roots.tolist() == [-3, -3]


def test_first_tokens_do_not_wait_for_the_drafter() -> None:
    """A drafter begins, and reads the prompts, in the first round: not before the first tokens are there, and not at
    all where they are the last.
    """
    target = image_target()
    guesser = drafter("hawk", target)
    start, begun = guesser.start, []

    def counted(*args) -> None:
        begun.append(args[1].counts)
        start(*args)

    guesser.start = counted
    rounds = stream(target, prompts(), len(TEXTS), Stop(5), guesser)
    next(rounds)
    assert not begun
    next(rounds)
    assert begun == [[1] * len(TEXTS)]
    generate(target, prompts(), len(TEXTS), Stop(1), guesser)
    assert len(begun) == 1
