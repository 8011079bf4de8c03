"""The training loop: it ends at its budget, resumes, and follows its schedule."""

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
