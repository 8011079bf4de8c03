"""The image tokenizer: pixel patches are matched to a codebook, a diffusers VQModel turns codes back into pictures.

The VQModel's own encoder is not used to make codes. Its group normalisation spreads every picture's statistics over
the whole picture, so the same white corner gets many codes (3.1 nats were measured), which an autoregressive model must
then learn to predict. A patch's code depends on the patch alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.train.loop import Budget, fit
from recipes.emoji_64.data import BACKGROUNDS, compose


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 `b h w c` in 0..255 to float `b c h w` in -1..1."""
    return rearrange(torch.from_numpy(images).float() / 127.5 - 1, "b h w c -> b c h w")


def patches(images: Tensor, size: int) -> Tensor:
    """`b c h w` to `b row column feature`, one feature vector for each square patch."""
    return rearrange(images, "b c (row y) (col x) -> b row col (c y x)", y=size, x=size)


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook entry (L2) of each point, `*shape feature` to `*shape`."""
    flat = points.reshape(-1, points.shape[-1])
    index = torch.cat([torch.cdist(part, codebook).argmin(1) for part in flat.split(8192)])
    return index.view(points.shape[:-1])


def learn_codebook(
    rgba: np.ndarray, codes: int, size: int, samples: int = 150_000, rounds: int = 15, seed: int = 0
) -> Tensor:
    """k-means over distinct patches of pictures on every background; the flat backgrounds keep entries of their own."""
    rng = np.random.default_rng(seed)
    parts = []
    for colour in BACKGROUNDS:
        rows = rng.permutation(len(rgba))[: max(1, len(rgba) // 2 if colour == "white" else len(rgba) // 8)]
        images = to_tensor(np.stack([compose(rgba[row], colour) for row in rows]))
        vectors = patches(images, size).flatten(0, 2)
        parts.append(vectors[vectors.std(1) > 0.01])
    points = torch.cat(parts)
    points = points[torch.from_numpy(rng.permutation(len(points))[:samples])]
    flat = torch.stack(
        [
            patches(to_tensor(np.full((1, size, size, 3), colour, np.uint8)), size).flatten()
            for colour in BACKGROUNDS.values()
        ]
    )
    centres = points[: codes - len(flat)].clone()
    for _ in range(rounds):
        owner = nearest(points, centres)
        count = torch.bincount(owner, minlength=len(centres))
        total = torch.zeros_like(centres).index_add_(0, owner, points)
        centres = torch.where(
            count[:, None] > 0, total / count.clamp(min=1)[:, None], points[torch.randint(len(points), (len(centres),))]
        )
    return torch.cat([flat, centres])


def restore(model: VQModel, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
    """Codes to pictures in -1..1, not clamped."""
    vectors = model.quantize.embedding(codes)
    return model.decode(rearrange(vectors, "b h w c -> b c h w"), force_not_quantize=True).sample


def composed(rgba: np.ndarray, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of pictures, half of them on white and half on another background."""
    rng = np.random.default_rng(seed)
    colours = list(BACKGROUNDS)
    while True:
        rows = rng.integers(0, len(rgba), batch)
        yield to_tensor(
            np.stack(
                [
                    compose(rgba[row], "white" if rng.random() < 0.5 else colours[rng.integers(len(colours))])
                    for row in rows
                ]
            )
        )


def train_tokenizer(
    rgba: np.ndarray,
    codebook: Tensor,
    size: int,
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 0,
    device: str | None = None,
) -> VQModel:
    """Train the VQModel's codebook vectors and decoder to undo `nearest(patches(image), codebook)`.

    The vectors start as the principal components of the patches. Loss: L1 + 2 MSE + L1 of image gradients, which keeps
    outlines sharp. The class insists on an encoder: it is never run, and its weights are zero.
    """
    torch.manual_seed(seed)
    model = VQModel(**config["model"])
    centred = codebook - codebook.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[: config["model"]["vq_embed_dim"]]
    model.quantize.embedding.weight.data.copy_(centred @ directions.T)
    for unused in (*model.encoder.parameters(), *model.quant_conv.parameters()):
        unused.requires_grad_(False).zero_()

    def loss(model: VQModel, images: Tensor) -> dict[str, Tensor]:
        images = images.to(model.device)
        codes = nearest(patches(images, size), codebook.to(model.device))
        error = restore(model, codes).float() - images
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        mse = error.square().mean()
        return {"loss": error.abs().mean() + 2 * mse + 0.5 * edges, "psnr": -10 * torch.log10(mse.detach() / 4)}

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, config["lr"], betas=(0.9, 0.99), weight_decay=0.0)
    return fit(
        "tokenizer",
        model,
        lambda step: composed(rgba, config["batch"], seed + step),
        loss,
        [adamw],
        budget,
        checkpoint,
        device=device,
    )


def encode(images: np.ndarray, codebook: Tensor, size: int) -> Tensor:
    """Codes of uint8 pictures, `b h w 3` to int `b row column`."""
    return nearest(patches(to_tensor(images), size), codebook)
