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
from mmspec.drafters.examples import DepthPredictions, Example, PromptFeatures, cross_entropy, masked_mean, pad
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import Candidates, product_tree, root
from mmspec.errors import MmspecError
from mmspec.train.capture import capture, load_examples
from mmspec.train.drafter import (
    drafter_class,
    frequent_tokens,
    held_out,
    random_batches,
    save_drafter,
    similar_batches,
    train_drafter,
)
from mmspec.train.loop import Budget

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
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Sampled sequences of a tiny target, and some of data."""
    target = image_target(torch.float32)
    cache = tmp_path_factory.mktemp("capture") / "examples.pt"
    batches = [(replace(prompts([[1, 3, 2]] * 10, 2.0), guidance=1.0), True), (prompts([[1, 5, 2]] * 10, 2.0), True)]
    data = [(replace(prompts([[1, 3, 2]], 2.0), guidance=1.0), [torch.arange(LENGTH) % 31])]
    sequences = capture(target, batches, Stop(LENGTH), data, cache)
    again = load_examples(cache)
    assert len(again) == len(sequences) == 21
    for one, other in zip(again, sequences, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.features, other.features)
        assert (one.seed, one.greedy, one.guidance, one.prompt) == (
            other.seed,
            other.greedy,
            other.guidance,
            other.prompt,
        )
    return sequences


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
    stage = {"kind": "guessing", "model": {}, "batch": 4, "lr": 1e-2}
    trained = train_drafter("mine", stage, target, examples, examples, Budget(40), tmp_path / "mine.pt", "cpu")
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


def test_too_few_sequences(examples) -> None:
    text = "3 sampled sequences were captured, and 16 are kept for calibration: set capture.sampled to 32 or more"
    with pytest.raises(MmspecError, match=text):
        held_out(MedusaDrafter, examples[:3])


def test_guidance_of_batches(examples) -> None:
    """Half of the time a sequence keeps its guidance, else it is anything from 1 to 4; the seed decides."""
    batches = random_batches(examples, 40, 0)
    guidance = [example.guidance for _ in range(20) for example in next(batches)]
    own = sum(value in (1.0, 2.0) for value in guidance) / len(guidance)
    assert 0.4 < own < 0.6 and min(guidance) >= 1 and max(guidance) <= 4
    assert [e.guidance for e in next(random_batches(examples, 40, 0))] == guidance[:40]


def test_frequent_tokens() -> None:
    """The commonest tokens of sequences, in order."""
    example = Example(torch.tensor([3, 5, 3, 1]), torch.zeros(1, 4, 2))
    assert frequent_tokens([example], 2) in ([1, 3], [3, 5]) and frequent_tokens([example], 9) == [1, 3, 5]


def test_stages_follow_the_budget() -> None:
    """Text alone in the first half of the budget, then ever more pictures; one stage has both from the start."""

    def example(row: int) -> Example:
        ids = torch.zeros(5 + row % 3, dtype=torch.long)
        is_text = torch.ones(len(ids), dtype=torch.bool)
        prompt = PromptFeatures(ids, torch.zeros(len(ids) - 1, 2), is_text, torch.zeros(row % 2, 2))
        return Example(torch.zeros(3, dtype=torch.long), torch.zeros(1, 3, 2), prompt=prompt)

    rows, budget = [example(row) for row in range(20)], Budget(100)

    def share(stages: int) -> float:
        batches = similar_batches(rows, 2, budget, stages, 0)
        return float(np.mean([len(next(batches)[0].prompt.visual) > 0 for _ in range(300)]))

    shares = {}
    for budget.progress in (0.0, 0.49, 0.75, 1.0):
        shares[budget.progress] = share(2)
    assert shares[0.0] == shares[0.49] == 0 and 0.4 < shares[0.75] < 0.6 and shares[1.0] == 1 and 0.7 < share(1) < 0.9
