"""Image codes to pixels."""

import torch
from diffusers import VQModel
from jaxtyping import Float, Int
from torch import Tensor


@torch.inference_mode()
def decode(vqvae: VQModel, codes: Int[Tensor, "image place"], height: int, width: int) -> Float[Tensor, "image 3 y x"]:
    """Pixels in -1..1 of codes in raster order, always in float32. Codes below 0 (not there yet) take the first entry."""
    shape = (len(codes), height, width, vqvae.config.vq_embed_dim)
    latents = vqvae.quantize.get_codebook_entry(codes.clamp(min=0).flatten().to(vqvae.device), shape)
    return vqvae.decode(latents, force_not_quantize=True).sample.clamp(-1, 1).cpu()
