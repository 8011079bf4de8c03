"""The one training loop: accelerate, a time or step budget, checkpoints that resume."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from mmspec.files import write_atomically

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch")


@dataclass(slots=True)
class Budget:
    """Training ends at `steps` or after `minutes` of work, whichever comes first; the schedule follows the same clock.

    `progress`, in [0, 1], is how much of it is spent.
    """

    steps: int
    minutes: float = 150.0
    warmup: float = 0.03
    progress: float = 0.0

    def rate(self, progress: float) -> float:
        """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then cosine to 2 %."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


def optimizers(
    model: nn.Module, lr: float, weight_decay: float = 0.01, muon_lr: float | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters, or Muon for the hidden matrices and AdamW for embeddings, output head and the rest."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [
        p for n, p in named if muon_lr and p.ndim == 2 and id(p) not in tables and not n.endswith("head.weight")
    ]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    ]
    if muon_lr and matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def fit(
    name: str,
    model: Model,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[Model, Batch], dict[str, Tensor]],
    optimizers: list[torch.optim.Optimizer],
    budget: Budget,
    checkpoint: Path,
    device: str | None = None,
    every: int = 100,
) -> Model:
    """Train `model` in place and return it.

    `batches(seed)` yields batches for ever; `loss(model, batch)` gives named terms of which "loss" is minimised.
    A checkpoint is written every `every` steps to a temporary file and renamed; an existing one is resumed.
    """
    accelerator = Accelerator(mixed_precision="bf16", cpu=device == "cpu")
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, elapsed = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, elapsed = saved["step"], saved["elapsed"]
    prepared = accelerator.prepare(model)
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]

    def save() -> None:
        state = {
            "model": accelerator.unwrap_model(prepared).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "elapsed": elapsed,
        }
        write_atomically(checkpoint, lambda partial: torch.save(state, partial))

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    source = iter(batches(step))
    last = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=budget.steps, completed=step, terms="")
        smooth: dict[str, float] = {}
        while step < budget.steps and elapsed < budget.minutes * 60:
            budget.progress = max(step / budget.steps, elapsed / (budget.minutes * 60))
            rate = budget.rate(budget.progress)
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * rate
            batch = next(source)
            with accelerator.autocast():
                terms = loss(prepared, batch)
            accelerator.backward(terms["loss"])
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            now = time.monotonic()
            elapsed, last = elapsed + now - last, now
            for key, value in terms.items():
                number = float(value.detach())
                smooth[key] = 0.95 * smooth.get(key, number) + 0.05 * number
            text = " ".join(f"{key} {value:.4f}" for key, value in smooth.items())
            bar.update(task, completed=step, terms=text)
            if step % every == 0:
                save()
                if not bar.console.is_terminal:
                    bar.console.print(f"{name} step {step} {elapsed:.0f} s {text}", soft_wrap=True)
    save()
    return accelerator.unwrap_model(prepared).eval()
