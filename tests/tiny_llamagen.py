"""Random files of LlamaGen, small and loud, under the names of its released ones; and what they mean, written anew."""

import json
from functools import cache
from itertools import product
from pathlib import Path

import torch
import transformers as hub
from safetensors.torch import save_file
from tiny_janus import letters
from torch import Tensor
from torch.nn import functional as F

CODES, SIDE, WIDTH, LAYERS, HEADS, KV_HEADS, INNER = 40, 4, 32, 2, 4, 2, 48
CLASSES, LENGTH, CAPTION = 1000, 48, 16
# The tensors of a layer: norms have one row.
PARTS = {
    "attention.wqkv": ((HEADS + 2 * KV_HEADS) * WIDTH // HEADS, WIDTH),
    "attention.wo": (WIDTH, WIDTH),
    "feed_forward.w1": (INNER, WIDTH),
    "feed_forward.w3": (INNER, WIDTH),
    "feed_forward.w2": (WIDTH, INNER),
    "attention_norm": (1, WIDTH),
    "ffn_norm": (1, WIDTH),
}


@cache
def gpt(kind: str) -> dict[str, Tensor]:
    """The tensors of a model of classes (`c2i`) or captions (`t2i`), in float64."""
    rng = torch.Generator().manual_seed(0)

    def loud(rows: int, columns: int, scale: float | None = None) -> Tensor:
        return torch.randn(rows, columns, generator=rng, dtype=torch.float64) * (scale or 1.6 / columns**0.5)

    tensors = {"tok_embeddings.weight": loud(CODES, WIDTH, 1.0), "output.weight": loud(CODES, WIDTH)}
    if kind == "c2i":
        tensors["cls_embedding.embedding_table.weight"] = loud(CLASSES + 1, WIDTH, 1.0)
    else:
        tensors["cls_embedding.cap_proj.fc1.weight"] = loud(WIDTH, CAPTION)
        tensors["cls_embedding.cap_proj.fc2.weight"] = loud(WIDTH, WIDTH)
        tensors["cls_embedding.uncond_embedding"] = loud(LENGTH, CAPTION, 1.0)
    for layer, (name, (rows, columns)) in product(range(LAYERS), PARTS.items()):
        tensor = loud(rows, columns) if rows > 1 else 1 + loud(1, columns, 0.2)[0]
        tensors[f"layers.{layer}.{name}.weight"] = tensor
    tensors["norm.weight"] = 1 + loud(1, WIDTH, 0.2)[0]
    return tensors


def angles() -> Tensor:
    """How far each place's pairs of features turn: half of the pairs by its row, half by its column."""
    pairs = WIDTH // HEADS // 2
    speed = [10000.0 ** (-2 * pair / pairs) for pair in range(pairs // 2)]
    places = [(row, column) for row in range(SIDE) for column in range(SIDE)]
    return torch.tensor([[row * s for s in speed] + [column * s for s in speed] for row, column in places])


def turned(features: Tensor, prompt: int) -> Tensor:
    """`head position width` with neighbours turned together as complex numbers; those of the prompt become 0."""
    count = features.shape[1] - prompt
    turn = torch.polar(torch.ones(count, WIDTH // HEADS // 2), angles()[:count]).to(torch.complex128)
    pairs = torch.view_as_complex(features.unflatten(-1, (-1, 2)).contiguous())
    pairs = torch.cat([torch.zeros_like(pairs[:, :prompt]), pairs[:, prompt:] * turn], 1)
    return torch.view_as_real(pairs).flatten(-2)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.float(), (WIDTH,), eps=1e-5).to(x.dtype) * weight


@torch.inference_mode()
def logits(kind: str, prompt: Tensor, codes: list[int], seen: Tensor) -> Tensor:
    """What comes after codes, from the whole sequence: vectors of the prompt, of which only those `seen` are attended
    to, but each by itself.
    """
    tensors, head = gpt(kind), WIDTH // HEADS
    x = torch.cat([prompt, tensors["tok_embeddings.weight"][codes]])
    mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    mask[:, : len(prompt)] &= seen
    mask |= torch.eye(len(x), dtype=torch.bool)
    for layer in range(LAYERS):
        weights = {name: tensors[f"layers.{layer}.{name}.weight"] for name in PARTS}
        qkv = F.linear(rms(x, weights["attention_norm"]), weights["attention.wqkv"])
        query, key, value = qkv.unflatten(1, (-1, head)).transpose(0, 1).split([HEADS, KV_HEADS, KV_HEADS])
        query, key = turned(query, len(prompt)), turned(key, len(prompt))
        key, value = (part.repeat_interleave(HEADS // KV_HEADS, 0) for part in (key, value))
        scores = (query @ key.transpose(1, 2) / head**0.5).masked_fill(~mask, -torch.inf)
        x = x + F.linear((scores.softmax(-1) @ value).transpose(0, 1).flatten(1), weights["attention.wo"])
        y = rms(x, weights["ffn_norm"])
        y = F.silu(F.linear(y, weights["feed_forward.w1"])) * F.linear(y, weights["feed_forward.w3"])
        x = x + F.linear(y, weights["feed_forward.w2"])
    return F.linear(rms(x, tensors["norm.weight"])[-1], tensors["output.weight"])


def class_prompt(number: int | None) -> tuple[Tensor, Tensor]:
    """The vector of a class, or of none; and that it is seen."""
    table = gpt("c2i")["cls_embedding.embedding_table.weight"]
    return table[[CLASSES if number is None else number]], torch.ones(1, dtype=torch.bool)


def caption_prompt(caption: Tensor, unconditional: bool = False) -> tuple[Tensor, Tensor]:
    """All vectors of a caption that is padded on the left, or those of none; which ones are seen depends on the caption
    in both.
    """
    tensors, missing = gpt("t2i"), LENGTH - len(caption)
    padded = torch.cat([torch.zeros(missing, CAPTION, dtype=torch.float64), caption.double()])
    vectors = tensors["cls_embedding.uncond_embedding"] if unconditional else padded
    hidden = F.gelu(F.linear(vectors, tensors["cls_embedding.cap_proj.fc1.weight"]), approximate="tanh")
    return F.linear(hidden, tensors["cls_embedding.cap_proj.fc2.weight"]), torch.arange(LENGTH) >= missing


@cache
def vq() -> dict[str, Tensor]:
    """The tensors of a VQ model whose codes are 4 pixels wide."""
    rng, tensors = torch.Generator().manual_seed(1), {}
    base, widths, deep, code = 32, (32, 32, 64), 16, 8

    def put(name: str, rows: int, columns: int = 0, kernel: int = 3) -> None:
        """A convolution, or a norm."""
        shape = (rows, columns, kernel, kernel) if columns else (rows,)
        scale = 1.5 / (columns * kernel**2) ** 0.5 if columns else 0.2
        tensors[name + ".weight"] = torch.randn(shape, generator=rng) * scale + (0 if columns else 1)
        tensors[name + ".bias"] = torch.randn(rows, generator=rng) * 0.1

    def resnet(name: str, before: int, after: int) -> None:
        put(f"{name}.norm1", before)
        put(f"{name}.conv1", after, before)
        put(f"{name}.norm2", after)
        put(f"{name}.conv2", after, after)
        if before != after:
            put(f"{name}.nin_shortcut", after, before, 1)

    def attention(name: str, width: int) -> None:
        put(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            put(f"{name}.{part}", width, width, 1)

    for half, blocks, count, change in (
        ("encoder", widths, 2, "downsample"),
        ("decoder", widths[::-1], 3, "upsample"),
    ):
        before = base if half == "encoder" else widths[-1]
        put(f"{half}.conv_in", before, 3 if half == "encoder" else deep)
        for i, width in enumerate(blocks):
            deepest = width == widths[-1]
            for j in range(count):
                resnet(f"{half}.conv_blocks.{i}.res.{j}", before, width)
                if deepest:
                    attention(f"{half}.conv_blocks.{i}.attn.{j}", width)
                before = width
            if i < len(blocks) - 1:
                put(f"{half}.conv_blocks.{i}.{change}.conv", width, width)
        for number, make in enumerate((resnet, attention, resnet)):
            make(f"{half}.mid.{number}", *([widths[-1]] * (1 if make is attention else 2)))
        put(f"{half}.norm_out", before)
        put(f"{half}.conv_out", deep if half == "encoder" else 3, before)
    put("quant_conv", code, deep, 1)
    put("post_quant_conv", deep, code, 1)
    tensors["quantize.embedding.weight"] = torch.randn(CODES, code, generator=rng)
    tensors["quantize.codebook_used"] = torch.zeros(65536)
    return tensors


@torch.inference_mode()
def decoded(codes: Tensor) -> Tensor:
    """The picture of `height width` codes."""
    t = {name: tensor.double() for name, tensor in vq().items()}

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, t[name + ".weight"], t[name + ".bias"], padding=t[name + ".weight"].shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, t[name + ".weight"], t[name + ".bias"], 1e-6)

    def resnet(name: str, x: Tensor) -> Tensor:
        y = conv(f"{name}.conv1", F.silu(norm(f"{name}.norm1", x)))
        y = conv(f"{name}.conv2", F.silu(norm(f"{name}.norm2", y)))
        return y + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in t else x)

    def attention(name: str, x: Tensor) -> Tensor:
        y = norm(f"{name}.norm", x)
        query, key, value = (conv(f"{name}.{part}", y).flatten(2) for part in "qkv")
        weights = (query.transpose(1, 2) @ key / x.shape[1] ** 0.5).softmax(-1)
        return x + conv(f"{name}.proj_out", (value @ weights.transpose(1, 2)).view_as(x))

    x = F.normalize(t["quantize.embedding.weight"], dim=-1)[codes].permute(2, 0, 1)[None]
    x = conv("decoder.conv_in", conv("post_quant_conv", x))
    x = resnet("decoder.mid.2", attention("decoder.mid.1", resnet("decoder.mid.0", x)))
    for i in range(3):
        for j in range(3):
            x = resnet(f"decoder.conv_blocks.{i}.res.{j}", x)
            if f"decoder.conv_blocks.{i}.attn.{j}.q.weight" in t:
                x = attention(f"decoder.conv_blocks.{i}.attn.{j}", x)
        if i < 2:
            x = conv(f"decoder.conv_blocks.{i}.upsample.conv", F.interpolate(x, scale_factor=2.0))
    return conv("decoder.conv_out", F.silu(norm("decoder.norm_out", x)))[0].clamp(-1, 1)


def t5() -> tuple[hub.PreTrainedTokenizerBase, hub.T5EncoderModel]:
    """A text encoder whose words are letters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(vocab_size=64, d_model=CAPTION, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        model = hub.T5EncoderModel(hub.T5Config(**sizes)).eval()
        torch.nn.init.normal_(model.shared.weight, std=1.0)
    return letters(("<pad>", "</s>", "<unk>"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"), model


def save_llamagen(folder: Path, kind: str, container: str = "model") -> Path:
    """A folder with the released files: pickles, or safetensors (`container` ""), and a T5 for captions."""
    folder.mkdir(parents=True)
    for name, tensors in ((f"{kind}_B_256", gpt(kind)), ("vq_ds4", vq())):
        if container:
            torch.save({container: tensors, "steps": 7}, folder / f"{name}.pt")
        else:
            save_file(tensors, folder / f"{name}.safetensors")
    config = {"model_type": "llamagen", "num_attention_heads": HEADS, "side": SIDE}
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "t2i":
        for part in t5():
            part.save_pretrained(folder / "flan-t5-xl")
    return folder
