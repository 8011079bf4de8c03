"""The one training loop: accelerate, a step or time budget, checkpoints that resume."""

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.placement import has_fast_bf16

Model = TypeVar("Model", bound=nn.Module)
Batch = TypeVar("Batch")
Loss = Callable[[Model, Batch], dict[str, Tensor]]


def join_processes(device: str | None) -> PartialState:
    """Meet the other processes that torchrun has started, if it has; to be called before anything else here.

    accelerate takes part on CPUs only where it is told so at first. Processes wait a day for each other, since one of
    them alone measures drafters.
    """
    on_cpu = device is not None and torch.device(device).type == "cpu"
    return PartialState(cpu=on_cpu, timeout=timedelta(days=1))


@dataclass(slots=True)
class Budget:
    """Training ends at `steps` or after `minutes` of work, whichever comes first; the schedule follows the same clock.

    `progress`, in [0, 1], is how much of it is spent.
    """

    steps: int
    minutes: float = math.inf
    warmup: float = 0.03
    progress: float = 0.0

    def rate(self, progress: float) -> float:
        """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then cosine to 2 %."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


class Objective(nn.Module):
    """A model and its loss as one module, which is what accelerate wraps: gradients of several processes are averaged
    when its forward was called.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, object], dict[str, Tensor]]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: object) -> dict[str, Tensor]:
        return self.loss(self.model, batch)


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
    loss: Loss,
    optimizers: list[torch.optim.Optimizer],
    budget: Budget,
    checkpoint: Path,
    device: str | None = None,
    every: int = 100,
    accumulation: int = 1,
    log: Path | None = None,
    on_checkpoint: Callable[[int, Model], dict[str, float]] | None = None,
) -> Model:
    """Train `model` in place and return it.

    `batches(step)` yields the batches from that step on; each process is given its own part. `loss(model, batch)` gives
    named terms of which "loss" is minimised, over `accumulation` batches a step. Random numbers depend on the step
    alone, so that a run that is killed and started again ends as one that was not. A checkpoint is written every
    `every` steps to a temporary file and renamed; an existing one is resumed. Before it is written,
    `on_checkpoint(step, model)` measures what it likes; `log` gets a line of JSON for each of these, and for the mean
    terms since the one before.
    """
    precision = "bf16" if has_fast_bf16(join_processes(device).device) else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, elapsed, lines = 0, 0.0, list[dict[str, float]]()
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, elapsed, lines = saved["step"], saved["elapsed"], saved.get("log", [])
    prepared = accelerator.prepare(Objective(model, loss))
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]

    def save() -> None:
        if on_checkpoint is not None and accelerator.is_main_process:
            lines.append({"step": step, "seconds": elapsed} | means(sums) | on_checkpoint(step, model))
            sums.clear()
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "elapsed": elapsed,
            "log": lines,
        }
        if accelerator.is_main_process:
            write_atomically(checkpoint, lambda partial: torch.save(state, partial))
            if log is not None:
                text = "".join(json.dumps(line) + "\n" for line in lines)
                write_atomically(log, lambda partial: partial.write_text(text))
        accelerator.wait_for_everyone()

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    source = iter(batches(step))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    sums: dict[str, list[float]] = {}
    saved_at = step if checkpoint.exists() else -1
    with Progress(*columns, disable=not accelerator.is_main_process) as bar:
        task = bar.add_task(name, total=budget.steps, completed=step, terms="")
        smooth: dict[str, float] = {}
        while step < budget.steps and elapsed < budget.minutes * 60:
            began = time.monotonic()
            budget.progress = max(step / budget.steps, elapsed / (budget.minutes * 60))
            rate = budget.rate(budget.progress)
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * rate
            torch.manual_seed(step)
            for number, batch in enumerate(islice(source, accumulation), 1):
                with accelerator.no_sync(prepared) if number < accumulation else nullcontext():
                    with accelerator.autocast():
                        terms = prepared(batch)
                    if not torch.isfinite(terms["loss"]):
                        raise MmspecError(f"{name}: the loss is {float(terms['loss'])} at step {step}: take a lower lr")
                    accelerator.backward(terms["loss"] / accumulation)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            elapsed += time.monotonic() - began
            for key, value in terms.items():
                mean = float(accelerator.reduce(value.detach().clone(), "mean"))
                smooth[key] = 0.95 * smooth.get(key, mean) + 0.05 * mean
                sums.setdefault(key, []).append(mean)
            text = " ".join(f"{key} {value:.4f}" for key, value in smooth.items())
            bar.update(task, completed=step, terms=text)
            if step % every == 0:
                save()
                saved_at = step
                if not bar.console.is_terminal:
                    bar.console.print(f"{name} step {step} {elapsed:.0f} s {text}", soft_wrap=True)
    if saved_at != step:
        save()
    return model.eval()


def means(sums: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each term."""
    return {key: sum(values) / len(values) for key, values in sums.items() if values}
