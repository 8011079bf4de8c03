"""Text to image with a model of transformers that people bring: a folder made by `save_pretrained`, or a hub id."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedModel, ProcessorMixin

from mmspec.codecs.base import ImageTokenizer
from mmspec.engine.loop import Stop
from mmspec.errors import MmspecError
from mmspec.pipelines.artist import Artist
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.families import ARTISTS, artist_class, artist_family, check_decoder
from mmspec.pipelines.loading import load_processor
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.pipelines.transformer import load_transformer
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.image import ImageTarget


class FamilyImagePipeline(TextToImagePipeline):
    """Draws with a model of transformers by its own processor and VQ decoder (`pipelines.artist`).

    >>> pipe = mmspec.pipeline("text-to-image", "deepseek-community/Janus-Pro-1B")

    Guidance and temperature are those of its `generation_config.json` unless given. `height` and `width` are the
    pictures' size in pixels, for families that draw more than one. `image_tokenizer` decodes codes in the place of the
    model's own VQ decoder.
    """

    parts: ClassVar[tuple[str, ...]] = ("processor", "transformer", "image_tokenizer")
    settings: ClassVar = {
        "drafter": str,
        "guidance_scale": (int, float),
        "temperature": (int, float),
        "height": int,
        "width": int,
    }
    allow_transformers = True

    def __init__(
        self,
        processor: ProcessorMixin,
        transformer: PreTrainedModel,
        drafter: str = "jacobi",
        guidance_scale: float | None = None,
        temperature: float | None = None,
        height: int | None = None,
        width: int | None = None,
        image_tokenizer: ImageTokenizer | None = None,
    ):
        family = transformer.config.model_type
        if family not in ARTISTS:
            raise MmspecError(f"transformer is a {type(transformer).__name__}, which does not draw: give one that does")
        if (height is None) != (width is None):
            raise MmspecError("height and width come together: give both, or none")
        self.artist = artist_class(family)(transformer, processor, height, width)
        self.image_tokenizer = image_tokenizer or self.artist
        DiffusionPipeline.__init__(self)
        self.register_modules(processor=processor, transformer=transformer)
        defaults = self.artist.sampling_defaults
        self.register_to_config(
            drafter=drafter,
            guidance_scale=self.artist.guidance_scale if guidance_scale is None else guidance_scale,
            temperature=defaults["temperature"] if temperature is None else temperature,
            **self.artist.size,
        )
        self._begin()

    def check_decoder(self) -> None:
        if isinstance(self.image_tokenizer, Artist):
            check_decoder(self.transformer.config.model_type)

    @property
    def sampling_defaults(self) -> dict[str, object]:
        return self.artist.sampling_defaults | {"temperature": self.temperature}

    @property
    def grid(self) -> Grid:
        return self.artist.grid

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: dict) -> dict:
        artist_family(folder)  # refused by name, before any weights are read
        parts: dict = {}
        if "processor" not in components:
            parts["processor"] = load_processor(folder)
        if "transformer" not in components:
            parts["transformer"] = load_transformer(folder, dtype, **loading)
        return parts

    def save_parts(self, folder: Path, **options: object) -> None:
        self.processor.save_pretrained(folder)
        self.transformer.save_pretrained(folder, **options)

    def to(self, *args: Any, **kwargs: Any) -> "FamilyImagePipeline":
        Pipeline.to(self, *args, **kwargs)
        return self

    def build_target(self, weights_hash: str) -> ImageTarget:
        return self.artist.target(weights_hash)

    def encode(self, prompts: list[str], guidance_scale: float) -> Prompts:
        """Prompts as the model's own processor reads them; with guidance other than 1 each has its unconditional
        prompt.
        """
        with self._tokenizer_lock:
            return self.artist.encode(prompts, guidance_scale)

    def encode_examples(self, rows: list[dict]) -> tuple[Prompts, Stop]:
        guidance = 0.0 if self.artist.guided else 1.0
        return self.encode([row["prompt"] for row in rows], guidance), Stop(self.grid.tokens)
