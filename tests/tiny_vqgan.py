"""A random VQGAN decoder in the layout of taming-transformers, and its forward, written from the layout alone."""

from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate, silu

# `ddconfig` of the tiny Chameleon's VQ model, and one that attends at a level too.
PLAIN = dict(z_channels=8, resolution=8, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2], num_res_blocks=1)
PLAIN |= dict(attn_resolutions=[], dropout=0.0, double_z=False)
DEEP = PLAIN | dict(resolution=16, ch_mult=[1, 1, 2], num_res_blocks=2, attn_resolutions=[8])


def vqgan_state(ddconfig: dict, codebook: Tensor, projection: Tensor | None = None) -> dict[str, Tensor]:
    """Loud random weights by the original's names, an encoder's and a discriminator's among them."""
    random = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {"quantize.embedding.weight": codebook.detach().float()}

    def conv(name: str, outputs: int, inputs: int, side: int) -> None:
        scale = 1.6 / (inputs * side * side) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=random)
        state[f"{name}.bias"] = 0.3 * torch.randn(outputs, generator=random)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=random)
        state[f"{name}.bias"] = 0.3 * torch.randn(width, generator=random)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", outputs, inputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", outputs, inputs, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    depth, multiples, levels = ddconfig["z_channels"], ddconfig["ch_mult"], len(ddconfig["ch_mult"])
    conv("post_quant_conv", depth, codebook.shape[1], 1)
    if projection is not None:
        state["post_quant_conv.weight"] = projection.detach().float()
    conv("quant_conv", codebook.shape[1], depth, 1)
    conv("encoder.conv_in", ddconfig["ch"], 3, 3)
    conv("loss.discriminator.main.0", 4, 3, 3)
    width = ddconfig["ch"] * multiples[-1]
    conv("decoder.conv_in", width, depth, 3)
    block("decoder.mid.block_1", width, width)
    attention("decoder.mid.attn_1", width)
    block("decoder.mid.block_2", width, width)
    for level in reversed(range(levels)):
        for number in range(ddconfig["num_res_blocks"] + 1):
            block(f"decoder.up.{level}.block.{number}", width, ddconfig["ch"] * multiples[level])
            width = ddconfig["ch"] * multiples[level]
            if ddconfig["resolution"] // 2**level in ddconfig["attn_resolutions"]:
                attention(f"decoder.up.{level}.attn.{number}", width)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", 3, width, 3)
    return state


def write_vqgan(folder: Path, state: dict[str, Tensor], ddconfig: dict | None = PLAIN) -> Path:
    """`vqgan.ckpt` as the original publishes it, and `vqgan.yaml` if there is a `ddconfig`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 3}, folder / "vqgan.ckpt")
    count, width = state["quantize.embedding.weight"].shape
    if ddconfig is not None:
        params = {"embed_dim": width, "n_embed": count, "ddconfig": ddconfig, "lossconfig": {"target": "a.b"}}
        (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "c.d", "params": params}}))
    return folder / "vqgan.ckpt"


def vqgan_pixels(state: dict[str, Tensor], codes: Tensor) -> Tensor:
    """The pictures of codes, before they are clamped, in float64."""
    weights = {name: value.double() for name, value in state.items()}

    def conv(name: str, x: Tensor) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        return group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def block(name: str, x: Tensor) -> Tensor:
        h = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", h)))
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (conv(f"{name}.{part}", norm(f"{name}.norm", x)).flatten(2) for part in "qkv")
        shares = torch.softmax(q.mT @ k / q.shape[1] ** 0.5, -1)
        return x + conv(f"{name}.proj_out", (v @ shares.mT).unflatten(2, x.shape[2:]))

    x = conv("post_quant_conv", weights["quantize.embedding.weight"][codes].permute(0, 3, 1, 2))
    x = block("decoder.mid.block_1", conv("decoder.conv_in", x))
    x = block("decoder.mid.block_2", attention("decoder.mid.attn_1", x))
    level = max(int(name.split(".")[2]) for name in weights if name.startswith("decoder.up."))
    while level >= 0:
        number = 0
        while f"decoder.up.{level}.block.{number}.conv1.weight" in weights:
            x = block(f"decoder.up.{level}.block.{number}", x)
            if f"decoder.up.{level}.attn.{number}.q.weight" in weights:
                x = attention(f"decoder.up.{level}.attn.{number}", x)
            number += 1
        if level:
            x = conv(f"decoder.up.{level}.upsample.conv", interpolate(x, scale_factor=2.0, mode="nearest"))
        level -= 1
    return conv("decoder.conv_out", silu(norm("decoder.norm_out", x)))
