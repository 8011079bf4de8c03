"""GLM-Image: its codes are drawn here, and painted by the second stage, a diffusion model, of diffusers' pipeline."""

from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GlmImageForConditionalGeneration, PreTrainedModel, ProcessorMixin

from mmspec import zoo
from mmspec.errors import MmspecError, short
from mmspec.pipelines.artist import Artist
from mmspec.pipelines.families import no_decoder
from mmspec.pipelines.family_image import FamilyImagePipeline
from mmspec.pipelines.loading import Loading
from mmspec.pipelines.request import ImageRequest, check_count
from mmspec.pipelines.text_to_image import UNDECODED
from mmspec.targets.base import Prompts
from mmspec.targets.glm_image import GlmImageTarget

# The pipeline's part that draws codes.
PART = "vision_language_encoder"


class GlmImageArtist(Artist):
    """GLM-Image's first stage; prompts name the sizes of the picture and of a preview, whose codes come first."""

    guidance, kind, guided = 1.0, "GlmImageForConditionalGeneration", False
    # Pixels of a code's side, by the processor's own arithmetic.
    scale = 32

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        super().__init__(model, processor)
        height, width = height or processor.target_h, width or processor.target_w
        if min(height, width) < self.scale or height % self.scale or width % self.scale:
            raise MmspecError(f"a size of {width}x{height} is not possible: give multiples of {self.scale} pixels")
        self._shape = {"target_h": height, "target_w": width}
        grids = self._inputs("a")["image_grid_thw"]
        if not grids.all():
            raise MmspecError(f"a size of {width}x{height} leaves its preview no codes: give one that is less narrow")
        self._grids = [(rows, columns) for _, rows, columns in grids.tolist()]
        self.codes = model.config.vq_config.num_embeddings
        self.grid = GlmImageTarget.raster(self._grids)

    def _inputs(self, prompt: str) -> dict[str, Tensor]:
        chat = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        options = dict(tokenize=True, return_dict=True, return_tensors="pt")
        return self.processor.apply_chat_template([chat], **options, **self._shape)

    def target(self, weights_hash: str) -> GlmImageTarget:
        return GlmImageTarget(self.model, self._grids, weights_hash)

    def read(self, prompt: str) -> list[int]:
        return self._inputs(prompt)["input_ids"][0].tolist()

    def unconditional(self, prompt: list[int]) -> list[int]:
        raise MmspecError("GLM-Image draws its codes without guidance: leave guidance_scale out, or give 1")

    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        raise no_decoder("glm_image")


class GlmImagePipeline(FamilyImagePipeline):
    """Draws with the folder of a diffusers `GlmImagePipeline`: codes by the loop, pictures by its second stage.

    >>> pipe = mmspec.pipeline("text-to-image", "zai-org/GLM-Image", height=1024, width=1024)

    `painter` is the pipeline of diffusers, without its `vision_language_encoder`, which is the `transformer`.
    `guidance_scale` and `num_inference_steps` are those of the second stage, whose noise has the picture's seed, and
    which runs in float32 where the transformer is in float64. It paints whole pictures alone: unfinished ones are grey.
    """

    parts = ("processor", "transformer", "painter")
    settings: ClassVar = {name: kind for name, kind in FamilyImagePipeline.settings.items() if name != "family"} | {
        "num_inference_steps": int
    }
    weights_part = PART
    allow_transformers = False
    article = "a GLM-Image"

    def __init__(
        self,
        processor: ProcessorMixin,
        transformer: PreTrainedModel,
        painter: diffusers.GlmImagePipeline,
        drafter: str = "jacobi",
        guidance_scale: float = 1.5,
        temperature: float | None = None,
        height: int | None = None,
        width: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_inference_steps: int = 50,
    ):
        check_count("num_inference_steps", num_inference_steps)
        sampling = (drafter, guidance_scale, temperature)
        super().__init__(processor, transformer, *sampling, height, width, top_k=top_k, top_p=top_p)
        self.painter = painter
        self.register_to_config(num_inference_steps=num_inference_steps)

    def check_decoder(self) -> None:
        """The second stage paints."""

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        parts: dict = {}
        if "transformer" not in components:
            parts["transformer"] = zoo.load_component(
                folder, PART, GlmImageForConditionalGeneration, dtype=dtype, **loading
            )
        if "painter" not in components:
            options: dict = {PART: None, "torch_dtype": painting_dtype(dtype), "local_files_only": True}
            try:
                parts["painter"] = diffusers.GlmImagePipeline.from_pretrained(folder, **options)
            except Exception as error:  # whatever its seven parts raise
                raise MmspecError(
                    f"{folder} does not load as a GlmImagePipeline ({short(error)}): restore it from its source"
                ) from None
        if "processor" not in components:
            parts["processor"] = (components | parts)["painter"].processor
        return parts

    def save_parts(self, folder: Path, **options: object) -> None:
        components = self.painter.components | {PART: self.transformer}
        diffusers.GlmImagePipeline(**components).save_pretrained(folder, **options)

    def to(self, *args: Any, **kwargs: Any) -> "GlmImagePipeline":
        super().to(*args, **kwargs)
        dtype = painting_dtype(self.dtype)
        self.painter.to(self.device, None if self.painter.vae.dtype == dtype else dtype)
        return self

    def encode(self, prompts: list[str], guidance_scale: float) -> Prompts:
        return super().encode(prompts, 1.0)

    @torch.inference_mode()
    def decode(
        self, codes: Int[Tensor, "row position"], request: ImageRequest | None = None, row: int = 0
    ) -> Float[Tensor, "row 3 y x"]:
        """The picture of a request's row, in 256 steps that of diffusers' own `__call__` for these codes."""
        size = self.artist.size
        if request is None or (codes < 0).any():
            return torch.full((1, 3, size["height"], size["width"]), 2 * UNDECODED - 1)
        grid = self.grid
        self.painter.set_progress_bar_config(**self._progress_bar_config)
        picture = self.painter(
            prompt=request.prompts[row],
            # As its `generate_prior_tokens` gives them: each code is twice as high and wide.
            prior_token_ids=repeat(
                codes.to(self.device), "1 (y x) -> 1 (y v x h)", y=grid.height, x=grid.width, v=2, h=2
            ),
            guidance_scale=request.guidance,
            num_inference_steps=self.config.num_inference_steps,
            generator=torch.Generator().manual_seed(request.seeds[row]),
            **size,
        ).images[0]
        return rearrange(torch.from_numpy(np.array(picture)), "y x c -> 1 c y x").double() / 127.5 - 1


def painting_dtype(dtype: torch.dtype) -> torch.dtype:
    """The second stage's dtype beside that of the transformer: diffusers' models are made for no more than float32."""
    return torch.float32 if dtype == torch.float64 else dtype
