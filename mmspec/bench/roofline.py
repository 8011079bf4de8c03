"""What a pass must cost at least on a device, and the speed-up that this allows: ESTIMATES, from sizes alone.

`python -m mmspec.bench.roofline` writes tables for models and cards that are not here; with `--check MODEL` it compares
the same arithmetic with passes measured on this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import tyro

from mmspec.cli.common import run_function
from mmspec.errors import MmspecError
from mmspec.files import check_output

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

NODES = (1, 4, 8, 16, 32, 64)

# Operations of one decoder layer, and of a round beside its layers, by what the suites of the benchmark count for
# emoji-64 (8 layers) and magpie-135 (30 layers).
LAYER_OPERATIONS, ROUND_OPERATIONS = 39, 100

# Operations of drafting a tree, by the same count: the aim, heads (hawk), a recurrent head (hawk-path), a layer with
# attention (msd).
DRAFTS = (20, 67, 166, 434)


@dataclass(frozen=True, slots=True)
class Card:
    """A device: bytes a second from memory, 16-bit floating-point operations a second, and seconds an operation takes
    to be launched. From the makers' data sheets, dense; launches are our estimate.
    """

    name: str
    bandwidth: float
    flops: float
    launch: float = 5e-6


CARDS = (
    Card("H100 SXM", 3.35e12, 989e12),
    Card("A100 80GB SXM", 2.04e12, 312e12),
    Card("RTX 4090", 1.01e12, 165e12),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes; `head` rows of the output matrix, `branches` of guidance, `context` positions in the cache,
    `itemsize` bytes of a number.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    head: int
    branches: int = 1
    context: int = 512
    itemsize: int = 2

    @classmethod
    def of(
        cls, name: str, config: "PreTrainedConfig", head: int, branches: int, context: int, itemsize: int = 2
    ) -> "Shape":
        """The sizes of a model of transformers."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            name,
            text.num_hidden_layers,
            text.hidden_size,
            heads,
            getattr(text, "num_key_value_heads", None) or heads,
            getattr(text, "head_dim", None) or text.hidden_size // heads,
            text.intermediate_size,
            head,
            branches,
            context,
            itemsize,
        )

    @property
    def weights(self) -> int:
        """Numbers of weights that a pass reads."""
        query, value = self.heads * self.head_width, self.kv_heads * self.head_width
        layer = self.width * (2 * query + 2 * value + 3 * self.inner)
        return self.layers * layer + self.head * self.width

    def bytes(self, nodes: int) -> int:
        """Bytes that a pass moves at least: weights, and keys and values of the context."""
        cached = 2 * self.layers * self.kv_heads * self.head_width * (self.context + nodes)
        return self.itemsize * (self.weights + self.branches * cached)

    def flops(self, nodes: int) -> int:
        """Floating-point operations of a pass."""
        attention = 4 * self.layers * self.heads * self.head_width * (self.context + nodes)
        return self.branches * nodes * (2 * self.weights + attention)

    def limits(self, nodes: int, card: Card, captured: bool) -> dict[str, float]:
        """Seconds that memory, arithmetic and launches take at least."""
        return {
            "memory": self.bytes(nodes) / card.bandwidth,
            "arithmetic": self.flops(nodes) / card.flops,
            "launches": 0.0 if captured else self.launching(card),
        }

    def launching(self, card: Card) -> float:
        """Seconds that the operations of an eager pass take to be launched."""
        return self.layers * LAYER_OPERATIONS * card.launch

    def seconds(self, nodes: int, card: Card, captured: bool) -> float:
        """What a pass takes at least: the largest of the limits."""
        return max(self.limits(nodes, card, captured).values())

    def binding(self, nodes: int, card: Card, captured: bool) -> str:
        """Which of them that is."""
        limits = self.limits(nodes, card, captured)
        return max(limits, key=limits.__getitem__)

    def speedup(self, nodes: int, length: float, card: Card, captured: bool, draft_operations: int) -> float:
        """The speed-up over plain decoding at an acceptance length, with drafts of so many operations."""
        rest, draft = ROUND_OPERATIONS * card.launch, draft_operations * card.launch
        return length * (self.seconds(1, card, captured) + rest) / (self.seconds(nodes, card, captured) + rest + draft)


# From the published configurations of these models.
MODELS = (
    Shape("Janus-Pro-7B", 30, 4096, 32, 32, 128, 11008, 16384, branches=2, context=600),
    Shape("Lumina-mGPT-7B", 32, 4096, 32, 32, 128, 11008, 65536, branches=2, context=1200),
    Shape("CosyVoice 2 (0.5B)", 24, 896, 14, 2, 64, 4864, 6564, context=500),
    Shape("Llasa-1B", 16, 2048, 32, 8, 64, 8192, 193800, context=800),
    Shape("LLaVA-1.5-7B", 32, 4096, 32, 32, 128, 11008, 32064, context=700),
    Shape("Qwen2.5-VL-7B", 28, 3584, 28, 4, 128, 18944, 152064, context=1000),
)


def table(shapes: Sequence[Shape], cards: Sequence[Card], length: float) -> str:
    """Markdown: least milliseconds of a pass by nodes, what binds one of 16, speed-ups by operations of the draft."""
    lines = []
    for card in cards:
        lines += ["", f"## {card.name}", ""]
        heads = [f"{nodes} nodes, ms" for nodes in NODES] + ["16 nodes bound by", "eager pass bound by"]
        heads += [f"speed-up, {count} operations a draft" for count in DRAFTS]
        heads.append(f"speed-up, {DRAFTS[-1]} operations, eager pass")
        lines += [f"| model | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for shape in shapes:
            passes = " | ".join(f"{1e3 * shape.seconds(nodes, card, True):.2f}" for nodes in NODES)
            speedups = [f"{shape.speedup(16, length, card, True, count):.2f}×" for count in DRAFTS]
            speedups.append(f"{shape.speedup(16, length, card, False, DRAFTS[-1]):.2f}×")
            cells = [passes, *(shape.binding(16, card, captured) for captured in (True, False)), *speedups]
            lines.append(f"| {shape.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured_card(dtype: "torch.dtype", width: int = 4096) -> Card:
    """This machine's CPU, by a product that memory binds and one that arithmetic binds."""
    import torch

    def best(rows: int, matrices: int) -> float:
        weights = [torch.randn(width, width).to(dtype) for _ in range(matrices)]
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
        x, times = torch.randn(rows, width).to(dtype), []
        for _ in range(5):
            began = perf_counter()
            for weight in packed:
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            times.append((perf_counter() - began) / matrices)
        return min(times)

    bandwidth = dtype.itemsize * width * width / best(1, 24)
    flops = 2 * 512 * width * width / best(512, 2)
    x = torch.zeros(8)
    began = perf_counter()
    for _ in range(20000):
        x.add_(1)
    launch = (perf_counter() - began) / 20000
    return Card(f"this CPU, {torch.get_num_threads()} threads", bandwidth, flops, launch)


def check(name: str) -> str:
    """Markdown: passes of a bundled model measured here, beside the least that they must cost, in bfloat16 where this
    CPU multiplies it, else in float32.
    """
    import torch

    from mmspec.cli.verify import sample_prompts
    from mmspec.engine.cost import measure
    from mmspec.engine.packed import can_pack
    from mmspec.pipelines import pipeline, task_of
    from mmspec.zoo import resolve

    folder = resolve(name)
    dtype = torch.bfloat16 if can_pack(torch.bfloat16) else torch.float32
    if not can_pack(dtype):
        raise MmspecError("--check needs oneDNN and AVX2, which this machine does not have: leave it out")
    pipe = pipeline(task_of(folder), folder, device="cpu", dtype=dtype)
    prompts, stop = pipe.encode_examples(sample_prompts(folder, 1))
    guided = prompts.select(slice(None), pipe.default_guidance)
    branches = 2 if guided.unconditional else 1
    cost, card = measure(pipe.target, guided, min(stop.length, 256)), measured_card(dtype)
    shape = Shape.of(name, pipe.target.model.config, pipe.target.vocabulary_size, branches, 512, dtype.itemsize)
    short = str(dtype).removeprefix("torch.")
    lines = [
        f"{name} in {short} on {card.name}: {card.bandwidth / 1e9:.0f} GB/s, {card.flops / 1e12:.2f} TFLOP/s and "
        f"{1e6 * card.launch:.1f} µs an operation, measured.",
        "",
        "| nodes | least, ms | with launches, ms | measured, ms | measured ÷ least with launches |",
        "|---|---|---|---|---|",
    ]
    for nodes in NODES:
        least = shape.seconds(nodes, card, captured=True)
        # A CPU launches and computes one after the other.
        eager, seconds = least + shape.launching(card), cost.target(nodes)
        lines.append(
            f"| {nodes} | {1e3 * least:.2f} | {1e3 * eager:.2f} | {1e3 * seconds:.2f} | {seconds / eager:.2f} |"
        )
    return "\n".join(lines)


def main(
    out: Path = Path("roofline.md"),
    length: float = 4.0,
    check_models: Annotated[tuple[str, ...], tyro.conf.arg(name="check", metavar="MODEL ...")] = (),
) -> None:
    """Estimate what passes cost at least on cards that are not here, and what speed-up that allows.

    Example: python -m mmspec.bench.roofline --check emoji-64 wren-86 --out roofline.md

    Args:
        out: The file to write, in Markdown.
        length: The acceptance length, at 16 nodes, that speed-ups are for.
        check_models: Bundled models whose passes are measured on this CPU and compared with the same arithmetic.
    """
    check_output(out, {".md": "Markdown"})
    if not 1 <= length <= 17:
        raise MmspecError(f"--length {length:g} is no acceptance length of a tree of 16 nodes: give 1 to 17")
    text = f"""# What passes must cost at least: an estimate

Nothing here but the part on this CPU was measured. Written by `python -m mmspec.bench.roofline`: a pass takes as long
as reading its weights, keys and values (16 bits) or its arithmetic, whichever is longer, by the makers' figures for
bandwidth and dense 16-bit arithmetic; eager passes take at least {LAYER_OPERATIONS} launches a layer. Speed-ups are
over plain decoding of the same kind of one prompt (with guidance of two branches on Janus-Pro and Lumina-mGPT, and
500 to 1,200 positions in the cache), for trees of 16 nodes with an acceptance length of {length:g}, by how many
operations a draft launches ({DRAFTS[0]} is the aim; hawk's heads have {DRAFTS[1]}, hawk-path {DRAFTS[2]}, msd
{DRAFTS[3]}), of {CARDS[0].launch * 1e6:g} µs each. Real passes are slower, short ones by more.
{table(MODELS, CARDS, length)}
"""
    for name in check_models:
        text += f"\n## Checked: {name}\n\n{check(name)}\n"
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    run_function(main)
