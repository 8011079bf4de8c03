"""`mmspec bench image`: every drafter beside plain AR and `transformers.generate`, in one process on one model."""

import json
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM, SuppressTokensLogitsProcessor

from mmspec import drafters
from mmspec.bench import report
from mmspec.bench.provenance import provenance
from mmspec.decode import Stop, generate
from mmspec.metrics import GenerationStats
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.placement import dtype_of
from mmspec.sampling import Sampling
from mmspec.targets.base import Grid
from mmspec.targets.causal import Prompts
from mmspec.targets.image import ImageTarget
from mmspec.zoo import resolve

PROMPTS = (
    "a red heart, 3d style",
    "a butterfly on a blue background, flat style",
    "a hamburger, cartoon style",
    "a rocket on a black background, 3d style",
    "a sunflower, flat style",
    "an octopus on a yellow background, cartoon style",
    "a strawberry, 3d style",
    "a castle on a pink background, flat style",
)


@dataclass(frozen=True, slots=True)
class Entrant:
    """One line of the table: a drafter with its settings, and an acceptance rule."""

    label: str
    drafter: str
    rule: str = "exact"
    options: dict[str, Any] = field(default_factory=dict)


ENTRANTS = (
    Entrant("AR, our loop", "none"),
    Entrant("lookup", "lookup"),
    Entrant("jacobi", "jacobi"),
    Entrant("medusa, top-k", "medusa", options={"coupled": False}),
    Entrant("medusa, rejection", "medusa", "rejection"),
    Entrant("medusa, coupled", "medusa"),
    Entrant("hawk, the paper's", "hawk", "rejection"),
    Entrant("hawk heads, coupled", "hawk"),
    Entrant("hawk-path, top-k", "hawk-path", options={"coupled": False}),
    Entrant("hawk-path, rejection", "hawk-path", "rejection"),
    Entrant("hawk-path, coupled", "hawk-path"),
    Entrant("hawk-path, tolerance 3", "hawk-path", "tolerance:3"),
)
QUICK = ("AR, our loop", "jacobi", "medusa, coupled", "hawk heads, coupled", "hawk-path, coupled")
ABLATIONS = (
    *(entrant for entrant in ENTRANTS if entrant.label in ("AR, our loop", "medusa, coupled", "hawk heads, coupled", "hawk-path, coupled")),
    Entrant("vertical too (4 right + 1 down), top-k", "hawk", options={"coupled": False}),
    Entrant("diagonals too, coupled", "hawk-diagonal"),
    Entrant("hawk-path, leftovers not blended in", "hawk-path", options={"blend": 0.0}),
    *(Entrant(f"hawk-path, {nodes} nodes", "hawk-path", options={"nodes": nodes}) for nodes in (4, 8, 16, 32)),
)


class Transformers:
    """The same prompts through `transformers.generate`, at T = 1 with its own guidance processor."""

    label = "transformers.generate"

    def __init__(self, target: ImageTarget):
        self.target = target
        self.others = SuppressTokensLogitsProcessor(list(range(target.offset)), device=str(target.device))

    def __call__(self, prompts: Prompts, length: int, seed: int) -> GenerationStats:
        torch.manual_seed(seed)
        ids = torch.tensor(prompts.conditional, device=self.target.device)
        guided = (
            {}
            if prompts.unconditional is None
            else {"guidance_scale": prompts.guidance, "negative_prompt_ids": torch.tensor(prompts.unconditional, device=ids.device)}
        )
        began = perf_counter()
        out = self.target.model.generate(ids, do_sample=True, top_k=0, max_new_tokens=length, logits_processor=[self.others], **guided)
        count = out.shape[1] - ids.shape[1]
        total = perf_counter() - began
        return GenerationStats("transformers", "sampling", target=total, total=total, nodes=count, runs=[[1] * count] * len(ids))


def entrant_runner(
    entrant: Entrant, pipe: TextToImagePipeline, folder: Path, prompts: Prompts
) -> Callable[[Prompts, int, int], GenerationStats]:
    """A function that generates once and returns its statistics."""
    target = pipe.target
    rows = len(prompts.conditional)
    drafter = drafters.load(entrant.drafter, folder, target, prompts, target.grid.tokens, **entrant.options)

    def run(prompts: Prompts, length: int, seed: int) -> GenerationStats:
        return generate(target, prompts, rows, Stop(length), drafter, sampling=Sampling(), seeds=seed, rule=entrant.rule).stats

    return run


def row(label: str, found: list[GenerationStats], dtype: str, device: str, batch: int, guidance: float) -> dict:
    """One result from the runs of one entrant, sums over all of them."""
    total = sum(stats.total for stats in found)
    tokens = sum(stats.tokens for stats in found)
    split = {key: sum(stats.seconds[key] for stats in found) for key in ("draft", "target", "accept", "other")}
    return {
        "label": label,
        "drafter": found[0].drafter,
        "acceptance": found[0].acceptance,
        "lossless": found[0].lossless,
        "dtype": dtype,
        "device": device,
        "batch": batch,
        "guidance": guidance,
        "tokens": tokens,
        "tokens_per_second": tokens / total,
        "mean_acceptance_length": tokens / sum(len(runs) for stats in found for runs in stats.runs),
        "nodes_per_round": sum(stats.nodes for stats in found) / max(1, sum(stats.rounds for stats in found)),
        "cache_bytes": max(stats.cache_bytes for stats in found),
        "seconds": split,
        "seconds_per_image": total / sum(len(stats.runs) for stats in found),
    }


def compare(rows: list[dict]) -> None:
    """Add speed-up over AR in our loop, and speed-up per accepted length, to the rows of one setting."""
    base = next(found["tokens_per_second"] for found in rows if found["drafter"] == "none")
    for found in rows:
        found["speedup"] = found["tokens_per_second"] / base
        found["efficiency"] = found["speedup"] / found["mean_acceptance_length"]


def contest(folder: Path, dtype: str, device: str, batch: int, repeats: int, seed: int, entrants: Sequence[Entrant]) -> list[dict]:
    """All entrants on the same prompts and seeds, taking turns so that the machine's moods fall on all alike."""
    pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)
    pipe.target.narrowest = 1  # plain decoding at its fastest
    guidance = pipe.config.guidance_scale
    length, empty = pipe.target.grid.tokens, pipe.tokenizer("").input_ids

    def prompts(turn: int) -> Prompts:
        texts = [PROMPTS[(turn * batch + i) % len(PROMPTS)] for i in range(batch)]
        ids = [pipe.tokenizer(text).input_ids for text in texts]
        return Prompts(ids, [empty] * batch if guidance != 1 else None, guidance)

    runners: list[tuple[str, Callable[[Prompts, int, int], GenerationStats]]] = []
    for entrant in entrants:
        if entrant.drafter in drafters.usable(folder):
            runners.append((entrant.label, entrant_runner(entrant, pipe, folder, prompts(0))))
    if batch == 1 and entrants is not ABLATIONS:
        runners.insert(1, (Transformers.label, Transformers(pipe.target)))
    found: dict[str, list[GenerationStats]] = {label: [] for label, _ in runners}
    for _, runner in runners:
        runner(prompts(0), min(24, length), seed)
    for turn in track(range(repeats), f"{dtype}, batch {batch}", console=Console(stderr=True)):
        for label, runner in runners:
            found[label].append(runner(prompts(turn), length, seed + turn * batch))
    rows = [row(label, stats, dtype, device, batch, guidance) for label, stats in found.items()]
    compare(rows)
    return rows


def growth(folder: Path, device: str, sides: tuple[int, ...] = (16, 24, 32)) -> list[dict]:
    """Seconds per token as the grid grows, on random weights of the model's own configuration, AR and jacobi."""
    found = []
    codes = json.loads((folder / "vqvae" / "config.json").read_text())["num_vq_embeddings"]
    for side in sides:
        config = LlamaConfig.from_pretrained(folder / "transformer", max_position_embeddings=side * side + 128)
        torch.manual_seed(0)
        target = ImageTarget(LlamaForCausalLM(config).to(device, torch.bfloat16), config.vocab_size - codes, codes, Grid(side, side))
        for name in ("none", "jacobi"):
            stats = generate(
                target, Prompts([[1, 2]], [[1, 2]], 2.0), 1, Stop(side * side), drafters.load(name, None, target), seeds=0
            ).stats
            ours = (stats.seconds["draft"] + stats.seconds["accept"] + stats.seconds["other"]) / stats.rounds
            found.append(
                {
                    "side": side,
                    "drafter": name,
                    "tokens": stats.tokens,
                    "rounds": stats.rounds,
                    "ms_per_round": 1e3 * stats.total / stats.rounds,
                    "ours_ms_per_round": 1e3 * ours,
                    "cache_bytes": stats.cache_bytes,
                }
            )
    return found


def peak(folder: Path, drafter: str, device: str, seed: int) -> int:
    """Bytes at the peak of one picture in a process of its own: device memory on a GPU, else the resident set."""
    pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe(PROMPTS[0], seed=seed, drafter=drafter)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be the parent's peak, which a child inherits
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    import resource  # POSIX only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def memory(folder: Path, device: str, seed: int) -> list[dict]:
    """Peak memory of each drafter beside plain AR."""
    found: list[dict] = []
    for name in drafters.usable(folder):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            used = pool.submit(peak, folder, name, device, seed).result()
        found.append({"drafter": name, "peak_bytes": used, "over_ar": used / found[0]["peak_bytes"] if found else 1.0})
    return found


def run(
    model: str = "emoji-64",
    out: Path = Path("results"),
    quick: bool = False,
    device: str = "cpu",
    dtypes: Sequence[str] = ("bf16", "fp32"),
    seed: int = 0,
    batches: Sequence[int] = (1,),
    prompts: int = 8,
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each contest, and return it.

    `quick` runs the entrants of `QUICK` and leaves out ablations, growth and memory.
    """
    folder = resolve(model)
    rows: list[dict] = []
    results = {"suite": "image", "model": model, "temperature": 1.0, "provenance": provenance(device)}
    results |= {"rows": rows, "ablations": [], "growth": [], "memory": []}
    entrants = tuple(entrant for entrant in ENTRANTS if not quick or entrant.label in QUICK)
    for dtype in dtypes:
        for batch in batches:
            rows += contest(folder, dtype, device, batch, max(1, prompts // batch), seed, entrants)
            report.write(out, results)
    if not quick:
        results["ablations"] = contest(folder, dtypes[0], device, 1, prompts, seed, ABLATIONS)
        report.write(out, results)
        results["memory"] = memory(folder, device, seed)
        results["growth"] = growth(folder, device)
        report.write(out, results)
    print(json.dumps({"written": str(out), "best": max(rows, key=lambda found: found["speedup"] * found["lossless"])["label"]}))
    return out
