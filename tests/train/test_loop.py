"""The training loop: it ends at its budget, resumes, and follows its schedule."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmspec.train.loop import Budget, fit, optimizers


def test_fit_stops_at_its_budget_and_resumes(tmp_path: Path) -> None:
    """Two halves, the second on a fresh model, draw as many batches as they have steps, and end where one run ends."""
    drawn = []

    def batches(seed: int) -> Iterator[torch.Tensor]:
        while True:
            drawn.append(seed)
            yield torch.ones(2, 4)

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": model(batch).square().mean()}

    def run(steps: int, path: Path, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = torch.nn.Linear(4, 4)
        budget = Budget(steps, warmup=1e-9)
        return fit("linear", model, batches, loss, optimizers(model, 1e-2), budget, path, device="cpu")

    run(2, tmp_path / "halves.pt", 0)
    resumed = run(5, tmp_path / "halves.pt", 1)
    assert drawn == [0, 0, 2, 2, 2] and torch.load(tmp_path / "halves.pt", weights_only=True)["step"] == 5
    started = run(2, tmp_path / "fresh.pt", 0)
    other = run(5, tmp_path / "other.pt", 1)
    assert (resumed.weight - started.weight).abs().max() < 0.1 < (resumed.weight - other.weight).abs().max()


def noisy_loss(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """A loss that draws random numbers."""
    return {"loss": torch.nn.functional.dropout(model(batch), 0.5).square().mean()}


def numbered(step: int) -> Iterator[torch.Tensor]:
    """A batch for each step."""
    for number in range(step, 100):
        yield torch.full((2, 4), 1.0 + number % 3)


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    """Weights and log of a run that died, and lost a step that no checkpoint has, are those of one that did not."""
    seen = []

    def run(path: Path, dies: int | None = None) -> torch.nn.Module:
        def loss(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(len(seen))
            if len(seen) == dies:
                raise KeyboardInterrupt
            return noisy_loss(model, batch)

        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        seen.clear()
        measured: dict = dict(
            every=2, log=path.with_suffix(".jsonl"), on_checkpoint=lambda step, model: {"length": step}
        )
        return fit("linear", model, numbered, loss, optimizers(model, 1e-2), Budget(7), path, "cpu", **measured)

    def lines(path: Path) -> list[dict]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", dies=6)
    assert torch.load(tmp_path / "killed.pt", weights_only=True)["step"] == 4
    assert torch.equal(run(tmp_path / "killed.pt").weight, whole.weight) and len(seen) == 3
    assert lines(tmp_path / "killed.jsonl") == lines(tmp_path / "whole.jsonl")
    assert [row["length"] for row in lines(tmp_path / "whole.jsonl")] == [2, 4, 6, 7]


def test_accumulated_batches_are_one(tmp_path: Path) -> None:
    """Two batches a step learn what their union does, and batches are counted by steps."""
    rows = torch.arange(1.0, 13.0)[:, None].expand(12, 4)

    def run(accumulation: int) -> torch.nn.Module:
        def batches(step: int) -> Iterator[torch.Tensor]:
            return iter(rows[4 * step :].split(4 // accumulation))

        def loss(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": model(batch).square().mean()}

        torch.manual_seed(0)
        model, path = torch.nn.Linear(4, 4), tmp_path / f"{accumulation}.pt"
        learnt = optimizers(model, 1e-2)
        return fit("linear", model, batches, loss, learnt, Budget(3), path, "cpu", accumulation=accumulation)

    torch.testing.assert_close(run(2).weight, run(1).weight)


@pytest.mark.parametrize("progress", [0.0, 0.03, 0.5, 1.0])
def test_schedule(progress: float) -> None:
    """The learning rate rises in three per cent of the time, and falls to two per cent at the end."""
    rate = Budget(10).rate(progress)
    assert rate == pytest.approx(
        {0.0: 0.0, 0.03: 1.0, 0.5: 0.02 + 0.49 * (1 + np.cos(np.pi * 0.47 / 0.97)), 1.0: 0.02}[progress]
    )


def test_muon_takes_hidden_matrices_alone() -> None:
    """Embeddings, the output head and vectors stay with AdamW."""
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 4), "up": torch.nn.Linear(4, 8)})
    model["head"] = torch.nn.Linear(8, 5, bias=False)
    adamw, muon = optimizers(model, 1e-3, muon_lr=1e-3)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(8, 4)]
    assert [p.shape for p in adamw.param_groups[0]["params"]] == [(5, 4), (8,), (5, 8)]
    assert len(optimizers(model, 1e-3)) == 1
