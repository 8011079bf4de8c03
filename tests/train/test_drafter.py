"""Training of drafters: one routine for every class; a new one is a file and a line."""

import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import ModuleType

import pytest
import torch
from tiny import TRAINED, image_target, prompts, text_target
from tiny import drafter as tiny_drafter
from torch import nn

from mmspec import drafters
from mmspec.drafters import registry
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import DepthPredictions, Example, cross_entropy, guide, masked_mean, pad
from mmspec.drafters.lattice import cut_tree, product_paths
from mmspec.drafters.msd import MsdDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import Candidates, root
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline
from mmspec.targets.base import Target
from mmspec.train.capture import Reading, read_features
from mmspec.train.corpus import Corpus, CorpusSettings, SequenceFacts
from mmspec.train.drafter import (
    DrafterSettings,
    build_drafter,
    drafter_class,
    frequent_tokens,
    random_batch,
    similar_batch,
    train_drafter,
    vary,
)
from mmspec.train.stages import Training

LENGTH = 24


class GuessingDrafter(TrainedDrafter):
    """One linear head: what follows the last feature, one position further. All that a new drafter needs is here."""

    name = "guessing"

    def __init__(self, hidden_size: int, vocabulary: int, target: str = "", beta=None, coupling=None):
        super().__init__(target, 1, beta, coupling, beam=2, ranks=4)
        self.head = nn.Linear(hidden_size, vocabulary)

    def draft(self, state, noise, limit):
        if limit < 1:
            return root(state.roots)
        counts = torch.tensor(state.counts)
        latest = state.features[0, torch.arange(state.rows), counts - 1]
        values = self.head(latest)[:, None].log_softmax(-1)
        if not noise.greedy:
            values = self.beta[0] * (values + self.coupling[0] * noise.gumbel(state.counts, 1).to(values.dtype))
        proposed = self.candidates(values)
        rows = product_paths(Candidates(proposed.tokens, proposed.probs), self.max_nodes)
        return cut_tree(self, state.roots, rows, perf_counter())

    @classmethod
    def build(cls, target, **options):
        return cls(target.hidden_size, target.vocabulary_size, target=target.weights_hash, **options)

    def loss(self, target, examples, **options):
        batch = pad(examples, target.device)
        probs = target.logits(batch.features[:, 0]).softmax(-1)
        logits = self.head(batch.features[:, 0, :-1])
        return {"loss": masked_mean(cross_entropy(logits, probs[:, 1:]), batch.valid[:, 1:])}

    def predictions(self, target, example):
        features = pad([example], target.device).features[0, 0, :-1]
        return [DepthPredictions(torch.arange(1, len(example.tokens)), self.head(features).log_softmax(-1))]


def sample(
    target: Target, texts: list[list[int]], guidance: float | None = None, with_prompts: bool = False
) -> list[Example]:
    """The target's own sequences for prompts; with a guidance, if only 1, features are those of both CFG branches."""
    given, seeds = prompts(texts, 2.0 if guidance else 1.0), list(range(len(texts)))
    guided = given.select(slice(None), guidance or 1.0)
    tokens = generate(target, guided, len(texts), Stop(LENGTH), sampling=SamplingOptions(1.0), seeds=seeds).tokens
    parts = [torch.tensor(row) for row in tokens]
    examples = read_features(target, given, parts, seeds, reading=Reading(with_prompts))
    return [replace(example, guidance=guidance or 1.0) for example in examples]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Sampled sequences of a tiny target, half of them guided."""
    target = image_target(torch.float32)
    return [*sample(target, [[1, 3, 2]] * 6, 1.0), *sample(target, [[1, 5, 2]] * 6, 2.0)]


def test_captured_features_predicted_the_tokens(examples: list[Example]) -> None:
    """Every feature's guided logits and the sequence's own noise give the token (the end of rows is forced by the
    target).
    """
    target = image_target(torch.float32)
    for example in (examples[0], examples[8]):
        batch = pad([example], target.device)
        logits = guide(target.logits(batch.features), batch.guidance)[0]
        noise = Noise([example.seed], target.vocabulary_size).gumbel([0], LENGTH)[0]
        codes = example.tokens < target.vocabulary_size - 1
        expected = (logits + noise)[:, :-1].argmax(1)
        assert (expected[codes] == example.tokens[codes]).all() and codes.sum() > 15


def test_long_sequences_are_read_in_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features do not depend on how many tokens a pass reads, nor on the other rows, which end sooner."""
    target = image_target()
    tokens = [torch.arange(LENGTH) % 31, torch.arange(9) % 7]
    whole = read_features(target, prompts([[1, 3, 2], [1, 2]], 2.0), tokens, [-1, -1])
    monkeypatch.setattr("mmspec.train.capture.MAX_TREE_NODES", 5)
    parts = read_features(target, prompts([[1, 3, 2], [1, 2]], 2.0), tokens, [-1, -1])
    for one, other, row in zip(whole, parts, tokens, strict=True):
        assert one.features.shape == (2, len(row), target.hidden_size)
        torch.testing.assert_close(one.features, other.features, atol=1e-12, rtol=0)
    (alone,) = read_features(target, prompts([[1, 2]], 2.0), tokens[1:], [-1])
    torch.testing.assert_close(alone.features, whole[1].features, atol=1e-12, rtol=0)


def test_a_new_drafter_is_a_file_and_a_line(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered by one entry, a class is trained, calibrated, saved, loaded by its folder, and gives the tokens of
    plain decoding.
    """
    module = ModuleType("their_package")
    module.GuessingDrafter = GuessingDrafter
    monkeypatch.setitem(sys.modules, "their_package", module)
    monkeypatch.setitem(registry.TABLE, "guessing", registry.Entry("their_package:GuessingDrafter", trained=True))
    rows = [{"prompt": f"a cat {number}"} for number in range(10)]
    pipe = pipeline("text-to-image", model_folder, device="cpu", dtype="fp32")
    corpus = Corpus(pipe, rows, CorpusSettings(batch=8, length=10, held_out=1), tmp_path / "work")
    settings = DrafterSettings.of("guessing", steps=8, lr=1e-2, muon_lr=0.0, evaluations=1)
    training = Training(corpus, settings, tmp_path / "mine", "cpu")
    training.run()
    assert (tmp_path / "mine" / "report.json").is_file()
    exact = pipeline("text-to-image", model_folder, device="cpu", dtype="fp64")
    loaded = drafters.load(str(tmp_path / "mine"), exact.folder, exact.target)
    assert isinstance(loaded, GuessingDrafter) and loaded.target_hash == pipe.target.weights_hash
    assert loaded.beta != [1.0] and not torch.equal(loaded.head.weight.float(), training.build().head.weight)
    given = exact.encode_examples(rows[:2])[0].select(slice(None), 2.0)
    for temperature in (0.0, 1.0):
        sampling = SamplingOptions(temperature)
        plain = generate(exact.target, given, 2, Stop(20), sampling=sampling, seeds=5)
        drafted = generate(exact.target, given, 2, Stop(20), loaded, sampling=sampling, seeds=5)
        assert drafted.tokens == plain.tokens and drafted.stats.drafter == "guessing"


@pytest.mark.parametrize("tv", [0.0, 0.9])
@pytest.mark.parametrize("name", [*TRAINED, "msd"])
def test_training_lowers_the_loss(name: str, tv: float, examples: list[Example]) -> None:
    """Some steps on one batch lower each drafter's own loss, whatever the share of total variation."""
    if name == "msd":
        target: Target = text_target(dtype=torch.float32)
        torch.manual_seed(0)
        drafter, batch = MsdDrafter.build(target, depth=2), sample(target, [[1, 3, 4, 2]] * 4, with_prompts=True)
    else:
        target, batch = image_target(torch.float32), examples[:3] + examples[-3:]
        drafter = tiny_drafter(name, target)
    drafter.float().train()
    optimizer = torch.optim.Adam(drafter.parameters(), 1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        loss = drafter.loss(target, batch, tv=tv)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


def test_the_best_weights_are_returned(examples: list[Example], tmp_path: Path) -> None:
    """Those of the evaluation that gave most, which need not be the last; the log has all of them."""
    target = image_target(torch.float32)
    settings = DrafterSettings.of("medusa", model={"neighbours": [[0, 2]]}, steps=3, batch=2, evaluations=3, lr=1e-2)
    facts = [SequenceFacts(0, row, LENGTH, 3, 0) for row in range(len(examples))]
    lengths, seen = iter([1.0, 3.0, 2.0]), []

    def evaluate(drafter: TrainedDrafter) -> float:
        seen.append(drafter.heads[0].linear.weight.detach().clone())
        return next(lengths)

    def load(chosen: list[SequenceFacts]) -> list[Example]:
        return [examples[one.row] for one in chosen]

    drafter = build_drafter(settings, target, [])
    checkpoint = tmp_path / "checkpoint.pt"
    best = train_drafter(drafter, settings, target, facts, load, checkpoint, evaluate, "cpu")
    assert len(seen) == 3 and torch.equal(best.heads[0].linear.weight, seen[1]) and not torch.equal(seen[1], seen[2])
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 2
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_kinds_that_are_not_trained() -> None:
    with pytest.raises(MmspecError, match="^no drafter of kind 'jacobi' can be trained: give one of medusa, vadusa"):
        drafter_class("jacobi")


def test_drafters_that_cannot_be_built(tmp_path: Path) -> None:
    """Options that a class does not have, and weights that it cannot begin with, are refused by name."""
    target = image_target(torch.float32)
    with pytest.raises(
        MmspecError, match="unknown option of medusa 'depth': known are adversarial, discriminator, inner"
    ):
        DrafterSettings.of("medusa", model={"depth": 3})
    with pytest.raises(MmspecError, match="medusa is not built so"):
        build_drafter(DrafterSettings.of("medusa", model={"neighbours": "x"}), target, [])
    for loss, lr, message in (({"tv": 2}, 1e-3, "tv is a share"), ({"tv": float("nan")}, 1e-3, "tv"), ({}, -1.0, "lr")):
        with pytest.raises(MmspecError, match=message):
            DrafterSettings.of("medusa", loss=loss, lr=lr)
    torch.save({}, tmp_path / "heads.pt")
    with pytest.raises(MmspecError, match="'hawk-path' cannot begin with weights"):
        build_drafter(DrafterSettings.of("hawk-path"), target, [], tmp_path / "heads.pt")


def test_settings_left_out_are_the_class_own() -> None:
    settings = DrafterSettings.of("msd", steps=7, lr=None)
    assert (settings.steps, settings.lr, settings.vocabulary, settings.weight_decay) == (7, 1e-3, 8192, 0.0)


def test_frequent_tokens() -> None:
    """The commonest tokens of sequences, in order, and the first ones where sequences have too few."""
    rows = [[3, 5, 3], [1]]
    assert frequent_tokens(rows, 2, 9) in ([1, 3], [3, 5])
    assert frequent_tokens(rows, 5, 9) == [0, 1, 2, 3, 5] and frequent_tokens(rows, 9, 6) == [0, 1, 2, 3, 4, 5]


def facts(count: int) -> list[SequenceFacts]:
    """Sequences of many lengths, every other one with a picture."""
    return [SequenceFacts(row // 4, row % 4, 3 + 7 * row % 11, 5, row % 2) for row in range(count)]


def test_random_batches() -> None:
    """The seed decides, and every sequence comes up."""
    sequences = facts(20)
    batches = [random_batch(sequences, 8, seed) for seed in range(30)]
    assert batches == [random_batch(sequences, 8, seed) for seed in range(30)]
    assert {one for batch in batches for one in batch} == set(sequences)


def test_similar_batches() -> None:
    """Neighbours by length, all with pictures or all without; too few are repeated."""
    sequences = facts(20)
    for seed in range(30):
        batch = similar_batch(sequences, 3, seed, 1, 0.0)
        kin = sorted(one.length for one in sequences if one.visual == batch[0].visual)
        assert len(batch) == 3 and len({one.visual for one in batch}) == 1
        lengths = [one.length for one in batch]
        assert any(kin[start : start + 3] == lengths for start in range(len(kin) - 2))
    assert len(similar_batch(sequences[:2], 4, 0, 1, 0.0)) == 4


def test_stages_follow_the_progress() -> None:
    """Text alone in the first half, then ever more pictures; one stage has both from the start."""

    def share(stages: int, progress: float) -> float:
        return sum(similar_batch(facts(20), 2, seed, stages, progress)[0].visual for seed in range(300)) / 300

    shares = [share(2, progress) for progress in (0.0, 0.49, 0.75, 1.0)]
    assert shares[:2] == [0, 0] and 0.4 < shares[2] < 0.6 and shares[3] == 1 and 0.7 < share(1, 0.0) < 0.9


def test_vary(examples: list[Example]) -> None:
    """A sequence keeps its guidance or has another, and a seed for what a loss draws, which nothing else decides."""
    kept, changed = vary(examples[-1], True, 3.5, 7), vary(examples[-1], False, 3.5, 7)
    assert (kept.guidance, kept.draw, changed.guidance) == (2.0, 7, 3.5)
    assert kept.features is changed.features is examples[-1].features
    target = image_target(torch.float32)
    drafter = tiny_drafter("hawk-path", target)
    alone = drafter.loss(target, [kept])["loss"]
    torch.rand(3)
    assert torch.equal(alone, drafter.loss(target, [kept])["loss"])
    assert not torch.equal(alone, drafter.loss(target, [vary(examples[-1], True, 3.5, 8)])["loss"])
