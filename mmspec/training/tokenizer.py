"""The image tokenizer: a diffusers VQModel trained on composed pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from einops import rearrange
from torch import Tensor

from mmspec.training.emoji import BACKGROUNDS, compose
from mmspec.training.fit import Budget, fit


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 `b h w c` in 0..255 to float `b c h w` in -1..1."""
    return rearrange(torch.from_numpy(images).float() / 127.5 - 1, "b h w c -> b c h w")


def random_pictures(rgba: np.ndarray, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of pictures on random backgrounds, half of them white, a third mirrored."""
    rng = np.random.default_rng(seed)
    colours = list(BACKGROUNDS)
    while True:
        rows = rng.integers(0, len(rgba), batch)
        images = [compose(rgba[row], "white" if rng.random() < 0.5 else colours[rng.integers(len(colours))]) for row in rows]
        yield to_tensor(np.stack([image[:, ::-1] if rng.random() < 1 / 3 else image for image in images]))


@torch.no_grad()
def seed_codebook(model: VQModel, images: Tensor, rounds: int = 12) -> None:
    """Place the codebook on k-means centres of the encoder's outputs."""
    codebook = model.quantize.embedding.weight
    latents = torch.cat([model.encode(part).latents for part in images.split(64)])
    points = rearrange(latents, "b c h w -> (b h w) c").float()
    centres = points[torch.randperm(len(points))[: len(codebook)]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(16384)])
        count = torch.bincount(nearest, minlength=len(centres)).clamp(min=1)
        total = torch.zeros_like(centres).index_add_(0, nearest, points)
        used = torch.bincount(nearest, minlength=len(centres)) > 0
        centres[used] = (total / count[:, None])[used]
        centres[~used] = points[torch.randint(len(points), (int((~used).sum()),))]
    codebook.copy_(centres)


def train_tokenizer(rgba: np.ndarray, config: dict, budget: Budget, work: Path, seed: int = 0, device: str | None = None) -> VQModel:
    """Train first without the quantiser, then place the codebook by k-means and train with it, reviving dead codes.

    `rgba` holds training pictures only. Loss: L1 + 2 MSE + commitment. The final file is `work/tokenizer.pt`.
    """
    torch.manual_seed(seed)
    model = VQModel(**config["model"]).to(memory_format=torch.channels_last)
    free_steps, batch = config["free_steps"], config["batch"]
    usage = torch.zeros(model.config.num_vq_embeddings)

    def loss(model: VQModel, images: Tensor) -> dict[str, Tensor]:
        unwrapped = getattr(model, "module", model)
        if unwrapped.quantised:
            decoded, commitment = model(images, return_dict=False)[:2]
        else:
            decoded = unwrapped.decode(unwrapped.encode(images).latents, force_not_quantize=True).sample
            commitment = decoded.new_zeros(1)
        error = decoded.float() - images
        mse = error.square().mean()
        return {"loss": error.abs().mean() + 2 * mse + commitment.float().mean(), "psnr": -10 * torch.log10(mse.detach() / 4)}

    def after_step(model: VQModel, step: int, images: Tensor) -> None:
        if step == free_steps:
            sample = next(random_pictures(rgba, 512, seed + 1)).to(images.device)
            seed_codebook(model.eval(), sample)
            model.train()
            model.quantised = True
        if model.quantised and step % 10 == 0:
            with torch.no_grad():
                latents = model.encode(images).latents
                codes = model.quantize(latents)[2][2].flatten()
                usage.mul_(0.98).add_(torch.bincount(codes.cpu(), minlength=len(usage)).float())
                dead = usage < 0.05
                if step % 100 == 0 and step > free_steps + 200 and dead.any():
                    points = rearrange(latents, "b c h w -> (b h w) c")
                    model.quantize.embedding.weight[dead] = points[torch.randint(len(points), (int(dead.sum()),))].to(model.quantize.embedding.weight)
                    usage[dead] = 1.0

    checkpoint = work / "tokenizer.pt"
    model.quantised = checkpoint.exists() and torch.load(checkpoint, weights_only=True)["step"] >= free_steps
    adamw = torch.optim.AdamW(model.parameters(), config["lr"], betas=(0.9, 0.99), weight_decay=0.0)
    return fit("tokenizer", model, lambda s: random_pictures(rgba, batch, s), loss, [adamw], budget, checkpoint, after_step, device)
