"""The vision tower: a small ViT that learns what covers every patch of a scene, for a language model to read."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from mmspec.train.loop import Budget, fit, optimizers
from recipes.emoji_64.data import BACKGROUNDS
from recipes.magpie_135.scenes import SIZE, Scene, SceneMaker, corner

STYLES = ("flat", "cartoon", "3d")


def pixels(images: list) -> Tensor:
    """`row 3 height width` in -1..1, as the image processor gives them."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def covers(scene: Scene, patch: int) -> list[int]:
    """For every patch, in reading order, the number of the thing whose frame holds its centre; -1 for none."""
    side = SIZE // patch
    numbers = [-1] * side**2
    for number, thing in enumerate(scene.things):
        left, top = corner(thing)
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) * patch - left, (row + 0.5) * patch - top
                if 0 <= x < thing.width and 0 <= y < thing.width:
                    numbers[row * side + column] = number
    return numbers


class Labeller(nn.Module):
    """The tower with heads that name each patch: which thing (or none), in which style, on which background."""

    def __init__(self, config: dict, names: int):
        super().__init__()
        self.tower = SiglipVisionModel(SiglipVisionConfig(image_size=SIZE, vision_use_head=False, **config))
        width = config["hidden_size"]
        self.thing_head, self.style_head = nn.Linear(width, names + 1), nn.Linear(width, len(STYLES))
        self.background_head = nn.Linear(width, len(BACKGROUNDS))

    def terms(self, images: Tensor, names: Tensor, styles: Tensor, background: Tensor) -> dict[str, Tensor]:
        """Cross entropies in nats: of things and backgrounds over all patches, of styles where there is a thing."""
        hidden = self.tower(images, output_hidden_states=True).hidden_states[-1]
        thing = F.cross_entropy(self.thing_head(hidden).float().flatten(0, 1), names.flatten(), label_smoothing=0.05)
        style = F.cross_entropy(self.style_head(hidden).float().flatten(0, 1), styles.flatten(), ignore_index=-100)
        ground = F.cross_entropy(
            self.background_head(hidden).float().flatten(0, 1), background.repeat_interleave(hidden.shape[1])
        )
        right = (self.thing_head(hidden).argmax(-1) == names)[names > 0].float().mean()
        return {
            "loss": thing + 0.3 * style + 0.2 * ground,
            "thing": thing.detach(),
            "right": right,
            "style": style.detach(),
        }


# A batch of scenes: images, and for each patch its thing (0 for none) and style (-100 for none), and the background of
# each scene.
SceneBatch = tuple[Tensor, Tensor, Tensor, Tensor]


def scenes(studio: SceneMaker, batch: int, patch: int, seed: int) -> Iterator[SceneBatch]:
    """Endless batches of random scenes."""
    rng, colours = random.Random(seed), list(BACKGROUNDS)
    order = {name: 1 + i for i, name in enumerate(studio.names)}
    while True:
        drawn = [studio.scene(rng, False) for _ in range(batch)]
        images = pixels([studio.draw(scene, rng, 0.3) for scene in drawn])
        names, styles = (
            torch.zeros(batch, (SIZE // patch) ** 2, dtype=torch.long),
            torch.full((batch, (SIZE // patch) ** 2), -100),
        )
        for row, scene in enumerate(drawn):
            for index, number in enumerate(covers(scene, patch)):
                if number >= 0:
                    picture = studio.pictures[scene.things[number].picture]
                    names[row, index], styles[row, index] = order[picture.name], STYLES.index(picture.style)
        yield images, names, styles, torch.tensor([colours.index(scene.background) for scene in drawn])


def train_tower(
    studio: SceneMaker, config: dict, budget: Budget, checkpoint: Path, seed: int = 0, device: str | None = None
) -> SiglipVisionModel:
    """Train the tower on endless random scenes."""
    torch.manual_seed(seed)
    model = Labeller(config["model"], len(studio.names))

    def batches(step: int) -> Iterator[SceneBatch]:
        return scenes(studio, config["batch"], config["model"]["patch_size"], seed + 7919 * step)

    def loss(model: Labeller, batch: SceneBatch) -> dict[str, Tensor]:
        return model.terms(*(part.to(model.tower.device) for part in batch))

    optimizer = optimizers(model, config["lr"], config.get("weight_decay", 0.05), config.get("muon_lr"))
    return fit("vision", model, batches, loss, optimizer, budget, checkpoint, device=device).tower


def align(
    studio: SceneMaker,
    tower: SiglipVisionModel,
    projector: nn.Module,
    vector_of: Callable[[str], Tensor],
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 1,
    device: str | None = None,
) -> nn.Module:
    """Train the projector to give, for each patch, the sum of the language model's own vectors (`vector_of(text)`) of
    the thing that the patch shows and, at half weight, of its style and of the background. The tower is frozen."""
    torch.manual_seed(seed)
    things, styles, grounds = (
        torch.stack([vector_of(name) for name in names]) for names in (studio.names, STYLES, BACKGROUNDS)
    )
    things, styles = (torch.cat([torch.zeros_like(table[:1]), table]) for table in (things, styles))
    spread = float(things[1:].var())
    tower = tower.eval().requires_grad_(False)

    def batches(step: int) -> Iterator[SceneBatch]:
        return scenes(studio, config["batch"], config["model"]["patch_size"], seed + 7919 * step)

    def loss(projector: nn.Module, batch: SceneBatch) -> dict[str, Tensor]:
        images, thing, style, ground = batch
        device = next(projector.parameters()).device
        hidden = tower.to(device)(images.to(device), output_hidden_states=True).hidden_states[-1]
        labels = things[thing] + 0.5 * styles[style.clamp(min=-1) + 1] + 0.5 * grounds[ground][:, None]
        return {"loss": F.mse_loss(projector(hidden).float(), labels.to(device)) / spread}

    return fit(
        "align", projector, batches, loss, optimizers(projector, config["lr"], 0.0), budget, checkpoint, device=device
    )
