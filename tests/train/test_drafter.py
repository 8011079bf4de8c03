"""Training of drafters: one routine for every class; a new one is a file and a line."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny import drafter as tiny_drafter
from tiny import image_target, plain, prompts
from torch import nn

from mmspec import drafters
from mmspec.drafters import registry
from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import DepthPredictions, Example, cross_entropy, masked_mean, pad
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import Candidates, product_tree, root
from mmspec.errors import MmspecError
from mmspec.train.calibrate import calibrate
from mmspec.train.capture import read_features
from mmspec.train.corpus import SequenceFacts
from mmspec.train.drafter import (
    DrafterSettings,
    build_drafter,
    drafter_class,
    frequent_tokens,
    save_drafter,
    similar_batch,
    train_drafter,
)

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
        return product_tree(state.roots, Candidates(proposed.tokens, proposed.probs), self.max_nodes)

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


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Sampled sequences of a tiny target with guidance 1 and 2, and one of data."""
    target, sequences = image_target(torch.float32), []
    for guidance in (1.0, 2.0):
        batch = prompts([[1, 3, 2]] * 10, 2.0)
        seeds = list(range(10 * int(guidance), 10 * int(guidance) + 10))
        tokens = generate(target, batch.select(slice(None), guidance), 10, Stop(LENGTH), seeds=seeds).tokens
        read = read_features(target, batch, [torch.tensor(row) for row in tokens], seeds)
        sequences += [replace(example, guidance=guidance) for example in read]
    return sequences + read_features(target, prompts([[1, 3, 2]], 2.0), [torch.arange(LENGTH) % 31], [-1])


def test_captured_features_predicted_the_tokens(examples) -> None:
    """Every feature's guided logits and the sequence's own noise give the token (the end of rows is forced by the
    target).
    """
    from mmspec.drafters.examples import guide
    from mmspec.engine.noise import Noise

    target = image_target(torch.float32)
    for example in (examples[0], examples[12]):
        batch = pad([example], target.device)
        logits = guide(target.logits(batch.features), batch.guidance)[0]
        noise = Noise([example.seed], target.vocabulary_size).gumbel([0], LENGTH)[0]
        codes = example.tokens < target.vocabulary_size - 1
        expected = (logits + noise)[:, :-1].argmax(1)
        assert (expected[codes] == example.tokens[codes]).all() and codes.sum() > 15


def test_a_new_drafter_is_a_file_and_a_line(examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered by one entry, a class is trained, calibrated, saved, loaded by name, and gives the tokens of plain
    decoding.
    """
    module = ModuleType("their_package")
    module.GuessingDrafter = GuessingDrafter
    monkeypatch.setitem(sys.modules, "their_package", module)
    monkeypatch.setitem(registry.TABLE, "guessing", registry.Entry("their_package:GuessingDrafter", trained=True))
    target = image_target(torch.float32)
    settings = DrafterSettings.of("guessing", steps=40, batch=4, lr=1e-2)
    facts = [SequenceFacts(0, row, LENGTH, 3, 0) for row in range(len(examples) - 5)]
    drafter = train_drafter(
        build_drafter(settings, target, []),
        settings,
        target,
        facts,
        lambda chosen: [examples[one.row] for one in chosen],
        tmp_path / "mine.pt",
        lambda model: 1.0,
        "cpu",
    )
    calibrate(drafter, target, examples[-6:-1], [])
    trained = drafter
    assert trained.beta[0] > 0 and not torch.equal(
        trained.head.weight.float(), GuessingDrafter.build(target).head.weight
    )
    save_drafter(trained, "guessing", tmp_path / "drafters" / "mine")
    exact = image_target()
    assert "mine" in drafters.usable(tmp_path)
    loaded = drafters.load("mine", tmp_path, exact)
    assert isinstance(loaded, GuessingDrafter) and loaded.beta == trained.beta
    for temperature in (0.0, 1.0):
        sampling = SamplingOptions(temperature)
        result = generate(exact, prompts(), 3, Stop(20), loaded, sampling=sampling, seeds=5)
        assert result.tokens == plain(exact, 20, sampling) and result.stats.drafter == "guessing"


@pytest.mark.parametrize("name", ["medusa", "vadusa", "hawk", "hawk-path"])
def test_training_lowers_the_loss(name: str, examples) -> None:
    """Some steps on one batch lower each drafter's own loss."""
    target = image_target(torch.float32)
    drafter = tiny_drafter(name, target).float().train()
    optimizer = torch.optim.Adam(drafter.parameters(), 1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        loss = drafter.loss(target, examples[:6])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


def test_kinds_that_are_not_trained() -> None:
    with pytest.raises(MmspecError, match="^no drafter of kind 'jacobi' can be trained: give one of medusa, vadusa"):
        drafter_class("jacobi")


def test_frequent_tokens() -> None:
    """The commonest tokens of sequences, in order, and the first ones of the vocabulary beside them."""
    assert frequent_tokens([[3, 5, 3, 1]], 1, 9) == [3]
    assert frequent_tokens([[3, 5, 3, 1]], 5, 9) == [0, 1, 2, 3, 5]


def test_stages_follow_the_progress() -> None:
    """Text alone in the first half, then ever more pictures; one stage has both from the start."""
    rows = [SequenceFacts(0, row, 3, 5 + row % 3, row % 2) for row in range(20)]

    def share(stages: int, progress: float) -> float:
        return float(np.mean([similar_batch(rows, 2, seed, stages, progress)[0].visual > 0 for seed in range(300)]))

    assert share(2, 0.0) == share(2, 0.49) == 0 and share(2, 1.0) == 1
    assert 0.4 < share(2, 0.75) < 0.6 and 0.7 < share(1, 0.0) < 0.9
