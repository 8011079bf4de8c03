"""diffusers' VQ models as image tokenizers."""

import torch
from diffusers import VQModel
from jaxtyping import Float, Int
from torch import Tensor

from mmspec.errors import MmspecError


class VQImageTokenizer:
    """Codes of a diffusers `VQModel` to pictures; see `codecs.base.ImageTokenizer`."""

    def __init__(self, model: VQModel):
        if not isinstance(model, VQModel):
            raise MmspecError(f"vqvae is a {type(model).__name__}, which is no VQModel of diffusers: give one")
        self.model = model
        self.codes: int = model.config.num_vq_embeddings
        self.scale = 2 ** (len(model.config.block_out_channels) - 1)

    def to(self, device: torch.device) -> None:
        """Move to a device; precision stays."""
        self.model.to(device)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        config = self.model.config
        shape = (*codes.shape, config.vq_embed_dim or config.latent_channels)
        latents = self.model.quantize.get_codebook_entry(codes.to(self.model.device).flatten(), shape=shape)
        return self.model.decode(latents, force_not_quantize=True).sample.clamp(-1, 1)
