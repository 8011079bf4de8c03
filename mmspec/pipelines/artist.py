"""What a model of transformers needs to draw beside its weights: prompts as ids, and codes as pictures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from mmspec.codecs.base import ImageTokenizer
from mmspec.errors import MmspecError
from mmspec.pipelines.chat_encoder import control_tokens
from mmspec.pipelines.generation_config import sampling_defaults
from mmspec.pipelines.loading import Loading, load_processor
from mmspec.pipelines.transformer import load_transformer
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.emu3 import Emu3Target
from mmspec.targets.image import ImageTarget
from mmspec.targets.janus import JanusTarget, janus_twin


class Artist(ABC):
    """A model of transformers that draws, and its processor; an `ImageTokenizer` by the model's own VQ decoder.

    `guidance` is what its family takes where `generation_config.json` says nothing. `height` and `width`, in pixels,
    are for families that draw pictures of more than one size.
    """

    guidance: ClassVar[float]
    # How many of the most probable codes its source samples from; 0 is all.
    top_k: ClassVar[int] = 0
    # The class whose folder this is.
    kind: ClassVar[str]
    # Whether there are unconditional prompts.
    guided: ClassVar[bool] = True
    # The raster of a picture, how many codes there are, and the pixels of a code's side.
    grid: Grid
    codes: int
    scale: int

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        if type(model).__name__ != self.kind:
            raise MmspecError(f"the folder holds a {type(model).__name__}, which does not draw: give a {self.kind}")
        self.model, self.processor = model, processor
        self._control_tokens = control_tokens(processor)

    @classmethod
    def load_processor(cls, folder: Path) -> ProcessorMixin:
        """The processor in a folder."""
        return load_processor(folder)

    @classmethod
    def load_transformer(cls, folder: Path, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
        """The model in a folder."""
        return load_transformer(folder, dtype, **loading)

    def load_decoder(self, path: Path) -> ImageTokenizer:
        """What decodes the family's codes, for families whose own model does not."""
        raise MmspecError(f"a {self.kind} decodes by its own VQ model: leave image_tokenizer out")

    @abstractmethod
    def target(self, weights_hash: str) -> ImageTarget:
        """The model as the loop sees it."""

    @abstractmethod
    def read(self, prompt: str) -> list[int]:
        """A prompt's ids, up to where the picture begins, by the model's own processor."""

    @abstractmethod
    def unconditional(self, prompt: list[int]) -> list[int]:
        """The ids that guide away from a prompt."""

    @abstractmethod
    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        """What the model's own VQ decoder makes of codes, as its processor takes it."""

    def encode(self, prompts: list[str], guidance: float) -> Prompts:
        """Prompts as ids, each with its unconditional prompt where there is guidance."""
        for prompt in prompts:
            found = sorted(token for token in self._control_tokens if token in prompt)
            if found:
                raise MmspecError(f"the prompt holds {found[0]}, a control token of the model: leave it out")
        rows = [self.read(prompt) for prompt in prompts]
        return Prompts(rows, [self.unconditional(row) for row in rows] if guidance != 1 else None, float(guidance))

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        """Pictures in -1..1 that are, in 256 steps, those of the processor's own `postprocess`."""
        return self.postprocess(self.pixels(codes.to(self.model.device)).float().cpu()).double() / 127.5 - 1

    def postprocess(self, pixels: Float[Tensor, "row 3 y x"]) -> UInt8[Tensor, "row 3 y x"]:
        """What the processor's own `postprocess` makes of pixels."""
        pictures = self.processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")["pixel_values"]
        arrays = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        return rearrange(arrays, "row y x c -> row c y x")

    @property
    def size(self) -> dict[str, int]:
        """Height and width of a picture in pixels."""
        return {"height": self.grid.height * self.scale, "width": self.grid.width * self.scale}

    @property
    def sampling_defaults(self) -> dict[str, object]:
        """How to sample: as `generation_config.json` says, else as the family's source does."""
        return self.sampling_of(self.model.generation_config.to_dict())

    @classmethod
    def sampling_of(cls, config: Mapping[str, object]) -> dict[str, object]:
        """How a model of this family with this generation configuration samples."""
        top_k = {"top_k": cls.top_k} if cls.top_k and config.get("top_k") is None else {}
        return sampling_defaults(config, samples=True) | top_k

    @property
    def guidance_scale(self) -> float:
        """The guidance of `generation_config.json`, that of the family where it says nothing."""
        scale = self.model.generation_config.guidance_scale
        return float(self.guidance if scale is None else scale)


class JanusArtist(Artist):
    """Janus and Janus-Pro."""

    guidance, kind = 5.0, "JanusForConditionalGeneration"

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        super().__init__(model, processor)
        config, tokenizer = model.generation_config, processor.tokenizer
        # What the folder's generation_config.json leaves out; the model's `generate` needs it, too.
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(config, name, None) is None:
                setattr(config, name, getattr(tokenizer, name))
        if not getattr(config, "generation_kwargs", None):
            config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids(processor.image_start_token)}
        vq = model.config.vq_config
        self.codes, self.scale = vq.num_embeddings, 2 ** (len(vq.channel_multiplier) - 1)
        self.grid = Grid(vq.num_patches, vq.num_patches)
        side = vq.num_patches * self.scale
        if {height, width} - {None, side}:
            raise MmspecError(f"this Janus draws pictures of {side}x{side} pixels alone: leave the size out")

    def target(self, weights_hash: str) -> JanusTarget:
        return JanusTarget(self.model, weights_hash)

    def read(self, prompt: str) -> list[int]:
        options: dict[str, Any] = {}
        if self.processor.chat_template:
            chat = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
            prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            bos = self.processor.tokenizer.bos_token
            options = {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}
        inputs = self.processor(text=[prompt], generation_mode="image", return_tensors="pt", **options)
        return inputs["input_ids"][0].tolist()

    def postprocess(self, pixels: Float[Tensor, "row 3 y x"]) -> UInt8[Tensor, "row 3 y x"]:
        # Of torchvision's processor of transformers 5.24 tensors alone can be had.
        return self.processor.postprocess(list(pixels), return_tensors="pt")["pixel_values"]

    def unconditional(self, prompt: list[int]) -> list[int]:
        return janus_twin(self.model, prompt)

    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        return self.model.decode_image_tokens(codes.flatten(1)).movedim(3, 1)


class Emu3Artist(Artist):
    """Emu3-Gen. Its prompts name the size of the picture; guidance is against the empty prompt."""

    guidance, kind = 3.0, "Emu3ForConditionalGeneration"

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        super().__init__(model, processor)
        self.codes, self.scale = model.config.vq_config.codebook_size, model.model.vqmodel.spatial_scale_factor
        if height is None or width is None:
            self._shape = {"ratio": processor.ratio, "image_area": processor.image_area}
        elif min(height, width) < 1 or height % self.scale or width % self.scale:
            raise MmspecError(f"a size of {width}x{height} is not possible: give multiples of {self.scale} pixels")
        else:
            rows, columns = height // self.scale, width // self.scale
            self._shape = {
                "ratio": f"{columns}:{rows}",
                "image_area": rows * columns * processor.downsample_ratio**2,
            }
        side = processor.downsample_ratio
        rows, columns = processor.calculate_generate_size(**self._shape, spatial_factor=side)
        self.grid = Grid(rows, columns, end_of_row=True)

    def target(self, weights_hash: str) -> Emu3Target:
        return Emu3Target(self.model, self.grid.height, self.grid.width, weights_hash)

    def read(self, prompt: str) -> list[int]:
        inputs = self.processor(text=[prompt], return_for_image_generation=True, return_tensors="pt", **self._shape)
        return inputs["input_ids"][0].tolist()

    def unconditional(self, prompt: list[int]) -> list[int]:
        return self.read("")

    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        return self.model.model.vqmodel.decode(codes)
