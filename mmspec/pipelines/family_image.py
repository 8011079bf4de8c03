"""Text to image with a model of transformers that people bring: a folder made by `save_pretrained`, or a hub id."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from transformers import PreTrainedModel, ProcessorMixin

from mmspec.codecs.base import ImageTokenizer
from mmspec.codecs.vqgan import VQGANTokenizer
from mmspec.engine.loop import Stop
from mmspec.errors import MmspecError
from mmspec.pipelines.artist import Artist
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.families import (
    ARTISTS,
    WITHOUT_DECODER,
    artist_class,
    artist_family,
    check_decoder,
    decoder_file,
    family_of,
    no_decoder,
)
from mmspec.pipelines.generation_config import warn_of_others
from mmspec.pipelines.loading import Loading
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.image import ImageTarget


class FamilyImagePipeline(TextToImagePipeline):
    """Draws with a model of transformers by its own processor and VQ decoder (`pipelines.artist`).

    >>> pipe = mmspec.pipeline("text-to-image", "deepseek-community/Janus-Pro-1B")

    Guidance and temperature are those of its `generation_config.json` unless given. `height` and `width` are the
    pictures' size in pixels, for families that draw more than one. `image_tokenizer` decodes codes in the place of the
    model's own VQ decoder: an object, or for Chameleon's kin the path of the original checkpoint's vqgan.ckpt, which is
    also found in the model's folder. `family` is needed where the configuration does not tell it: a Lumina-mGPT that
    lost its own fields looks like a Chameleon.
    """

    parts: ClassVar[tuple[str, ...]] = ("processor", "transformer", "image_tokenizer")
    settings: ClassVar = {
        "drafter": str,
        "guidance_scale": (int, float),
        "temperature": (int, float),
        "height": int,
        "width": int,
        "top_k": int,
        "top_p": (int, float),
        "family": str,
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
        image_tokenizer: ImageTokenizer | str | Path | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        family: str | None = None,
    ):
        family = family or family_of(transformer.config.to_dict())
        if family not in ARTISTS:
            raise MmspecError(f"transformer is a {type(transformer).__name__}, which does not draw: give one that does")
        if (height is None) != (width is None):
            raise MmspecError("height and width come together: give both, or none")
        self.artist = artist_class(family)(transformer, processor, height, width)
        if isinstance(image_tokenizer, str | Path):
            image_tokenizer = self.artist.load_decoder(Path(image_tokenizer))
        self.image_tokenizer = image_tokenizer or self.artist
        DiffusionPipeline.__init__(self)
        self.register_modules(processor=processor, transformer=transformer)
        # Ids of its processors are the model's own, and the loop sees codes.
        warn_of_others(transformer.generation_config.to_dict(), ("guidance_scale",))
        defaults = self.artist.sampling_defaults
        self.register_to_config(
            drafter=drafter,
            family=family,
            guidance_scale=self.artist.guidance_scale if guidance_scale is None else guidance_scale,
            temperature=defaults["temperature"] if temperature is None else temperature,
            top_k=defaults["top_k"] if top_k is None else top_k,
            top_p=defaults["top_p"] if top_p is None else top_p,
            **self.artist.size,
        )
        self._begin()

    def check_decoder(self) -> None:
        if isinstance(self.image_tokenizer, Artist) and self.config.family in WITHOUT_DECODER:
            raise no_decoder(self.config.family)

    @property
    def sampling_defaults(self) -> dict[str, object]:
        return self.artist.sampling_defaults | {name: self.config[name] for name in ("temperature", "top_k", "top_p")}

    @property
    def grid(self) -> Grid:
        return self.artist.grid

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        # Refused by name, before any weights are read.
        family = components.get("family") or artist_family(folder)
        artist, decoder = artist_class(family), components.get("image_tokenizer")
        if isinstance(decoder, str | Path):
            check_decoder(family, folder, decoder)
        parts: dict = {}
        if "processor" not in components:
            parts["processor"] = artist.load_processor(folder)
        if "transformer" not in components:
            parts["transformer"] = artist.load_transformer(folder, dtype, **loading)
        if decoder is None and family in WITHOUT_DECODER:
            parts["image_tokenizer"] = decoder_file(folder)
        return parts

    def save_parts(self, folder: Path, **options: object) -> None:
        self.processor.save_pretrained(folder)
        self.transformer.save_pretrained(folder, **options)
        if isinstance(self.image_tokenizer, VQGANTokenizer):
            self.image_tokenizer.save_pretrained(folder / "tokenizer")

    def to(self, *args: Any, **kwargs: Any) -> "FamilyImagePipeline":
        Pipeline.to(self, *args, **kwargs)
        for part in (self.image_tokenizer, self.processor):
            if hasattr(part, "to"):
                part.to(self.device)
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
