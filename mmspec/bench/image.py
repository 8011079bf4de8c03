"""`mmspec bench image`: every drafter beside plain AR and `transformers.generate`, in one process on one model."""

import json
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec import drafters
from mmspec.bench import report
from mmspec.bench.suite import (
    Case,
    Choice,
    Setting,
    TransformersBaseline,
    by_generate,
    can_compile,
    choose_min_query_len,
    measure,
    new_results,
    passes_of,
    print_location,
    sweep,
)
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Generation, Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.pipelines.families import example_prompts
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.placement import dtype_of
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


CASES = (
    Case("AR, our loop", "none"),
    Case("lookup", "lookup"),
    Case("jacobi", "jacobi"),
    Case("medusa, top-k", "medusa", options={"coupled": False}),
    Case("medusa, rejection", "medusa", "rejection"),
    Case("medusa, coupled", "medusa"),
    Case("hawk, the paper's", "hawk", "rejection"),
    Case("hawk heads, coupled", "hawk"),
    Case("hawk-path, top-k", "hawk-path", options={"coupled": False}),
    Case("hawk-path, rejection", "hawk-path", "rejection"),
    Case("hawk-path, coupled", "hawk-path"),
    Case("hawk-path, tolerance 3", "hawk-path", "tolerance:3"),
)
QUICK = ("AR, our loop", "jacobi", "medusa, coupled", "hawk heads, coupled", "hawk-path, coupled")
ABLATIONS = (
    *(
        case
        for case in CASES
        if case.label in ("AR, our loop", "medusa, coupled", "hawk heads, coupled", "hawk-path, coupled")
    ),
    Case("vertical too (4 right + 1 down), top-k", "hawk", options={"coupled": False}),
    Case("diagonals too, coupled", "hawk-diagonal"),
    Case("hawk-path, leftovers not blended in", "hawk-path", options={"blend": 0.0}),
    *(Case(f"hawk-path, {nodes} nodes", "hawk-path", options={"nodes": nodes}) for nodes in (4, 8, 16, 32)),
)


def draw(
    target: ImageTarget,
    sampling: SamplingOptions,
    drafter: Drafter,
    rule: str,
    prompts: Prompts,
    length: int,
    seed: int,
) -> Generation:
    """By the loop."""
    rows = len(prompts.conditional)
    return generate(target, prompts, rows, Stop(length), drafter, sampling=sampling, seeds=seed, rule=rule)


def image_fields(label: str, runs: Sequence[Generation]) -> dict:
    """What rows of pictures have beside the others' fields."""
    return {"seconds_per_image": sum(run.stats.total for run in runs) / sum(len(run.tokens) for run in runs)}


def run_setting(
    folder: Path,
    dtype: str,
    device: str,
    batch: int,
    repeats: int,
    seed: int,
    cases: Sequence[Case],
    choice: Choice = Choice(),
) -> list[dict]:
    """All cases on the same prompts and seeds, at temperature 1 if no other is chosen."""
    pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)
    target, guidance = pipe.target, pipe.config.guidance_scale
    lines = [line["prompt"] for line in choice.prompts] or example_prompts(folder) or PROMPTS

    def job(turn: int) -> tuple[Prompts, int]:
        texts = [lines[(turn * batch + i) % len(lines)] for i in range(batch)]
        return pipe.encode(texts, guidance), target.grid.tokens

    choose_min_query_len(target, *job(0))
    pipe.compiled = can_compile(choice, job(0)[0])
    results: list[dict] = []
    for temperature in choice.temperatures or (1.0,):
        title = f"{dtype}, batch {batch}, guidance {guidance:g}, T = {temperature:g}, {passes_of(target)}"
        sampling = SamplingOptions(temperature)
        setting = Setting(target, folder, job, Stop, repeats, batch, seed, dtype, sampling, title, nodes=choice.nodes)
        foreign = []
        if batch == 1 and cases is not ABLATIONS and not target.why_not_comparable(guidance, 1.0):
            plain = partial(TransformersBaseline, target, None, temperature)
            foreign = by_generate(plain, target.compiled)
        results += measure(setting, cases, partial(draw, target, sampling), foreign, image_fields)
    return results


def growth(folder: Path, device: str, sides: tuple[int, ...] = (16, 24, 32)) -> list[dict]:
    """Seconds per token as the grid grows, on random weights of the model's own configuration, AR and jacobi."""
    lines = []
    codes = json.loads((folder / "vqvae" / "config.json").read_text())["num_vq_embeddings"]
    for side in sides:
        config = LlamaConfig.from_pretrained(folder / "transformer", max_position_embeddings=side * side + 128)
        torch.manual_seed(0)
        target = ImageTarget(
            LlamaForCausalLM(config).to(device, torch.bfloat16),
            range(config.vocab_size - codes, config.vocab_size),
            Grid(side, side),
        )
        for name in ("none", "jacobi"):
            stats = generate(
                target,
                Prompts([[1, 2]], [[1, 2]], 2.0),
                1,
                Stop(side * side),
                drafters.load(name, None, target),
                seeds=0,
            ).stats
            own_seconds = (stats.seconds["draft"] + stats.seconds["accept"] + stats.seconds["other"]) / stats.rounds
            lines.append(
                {
                    "side": side,
                    "drafter": name,
                    "tokens": stats.tokens,
                    "rounds": stats.rounds,
                    "ms_per_round": 1e3 * stats.total / stats.rounds,
                    "ours_ms_per_round": 1e3 * own_seconds,
                    "cache_bytes": stats.cache_bytes,
                }
            )
    return lines


def peak(folder: Path, drafter: str, device: str, seed: int) -> int:
    """Bytes at the peak of one picture in a process of its own: device memory on a GPU, else the resident set."""
    pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe((example_prompts(folder) or PROMPTS)[0], seed=seed, drafter=drafter)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would be the parent's peak, which a child inherits
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    import resource  # POSIX only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def memory(folder: Path, device: str, seed: int) -> list[dict]:
    """Peak memory of each drafter beside plain AR."""
    lines: list[dict] = []
    for name in drafters.usable(folder):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            used = pool.submit(peak, folder, name, device, seed).result()
        lines.append({"drafter": name, "peak_bytes": used, "over_ar": used / lines[0]["peak_bytes"] if lines else 1.0})
    return lines


def run(
    model: str = "emoji-64",
    out: Path = Path("results"),
    quick: bool = False,
    device: str = "cpu",
    dtypes: Sequence[str] = ("bf16", "fp32"),
    seed: int = 0,
    batches: Sequence[int] = (1,),
    prompts: int = 8,
    choice: Choice = Choice(),
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each setting, and return it.

    `quick` runs the cases of `QUICK` and leaves out ablations, growth and memory; chosen drafters leave them out too.
    """
    folder = resolve(model, allow_transformers=True)
    results = new_results("image", model, device)
    cases = choice.cases([case for case in CASES if not quick or case.label in QUICK])
    sweep(
        results,
        out,
        dtypes,
        batches,
        choice,
        lambda dtype, batch, now: run_setting(folder, dtype, device, batch, max(1, prompts // batch), seed, cases, now),
    )
    if not quick and not choice.drafters:
        results["ablations"] = run_setting(folder, dtypes[0], device, 1, prompts, seed, ABLATIONS)
        report.write(out, results)
        results["memory"] = memory(folder, device, seed)
        if (folder / "vqvae").is_dir():  # one of mmspec's own
            results["growth"] = growth(folder, device)
        report.write(out, results)
    print_location(results, out)
    return out
