"""LlamaGen: classes or captions to pictures, by its own VQ model."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

from mmspec.codecs.vq import VQImageTokenizer
from mmspec.errors import MmspecError, short
from mmspec.pipelines.artist import Artist
from mmspec.pipelines.families import model_family
from mmspec.pipelines.family_image import FamilyImagePipeline
from mmspec.pipelines.llamagen_files import load_model, load_tokenizer, only_file
from mmspec.pipelines.loading import Loading
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.llamagen import CaptionPrompts, LlamaGenTarget


class Captioner:
    """Captions as the vectors of a T5 encoder (Flan-T5-XL in the released models), and its tokenizer.

    Prompts are lower-cased. The sampler's own cleaning of captions from the web (addresses, HTML, file names) is not
    done.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel):
        self.tokenizer, self.encoder = tokenizer, encoder.eval()

    @torch.inference_mode()
    def __call__(self, prompt: str) -> tuple[list[int], Float[Tensor, "position width"]]:
        ids = self.tokenizer(prompt.lower().strip())["input_ids"]
        return ids, self.encoder(torch.tensor([ids], device=self.encoder.device)).last_hidden_state[0]

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.encoder.to(device)

    def save_pretrained(self, folder: Path) -> None:
        """Both parts, into one folder."""
        for part in (self.tokenizer, self.encoder):
            part.save_pretrained(folder / "t5")


def load_captioner(folder: Path, dtype: torch.dtype) -> Captioner:
    """The T5 in a folder beside the model's files, in float32 where the model is in float64."""
    parts = [path.parent for path in sorted(folder.glob("*/config.json"))]
    part = only_file(folder, [part for part in parts if model_family(part) == "t5"], "T5 encoders")
    if part is None:
        raise MmspecError(
            f"{folder} has no T5 encoder, which reads the captions of this LlamaGen: put the folder of "
            "google/flan-t5-xl there"
        )
    try:
        precision = torch.float32 if dtype == torch.float64 else dtype
        return Captioner(AutoTokenizer.from_pretrained(part), T5EncoderModel.from_pretrained(part, dtype=precision))
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise MmspecError(f"{part} does not load as a T5 encoder ({short(error)}): restore it") from None


class LlamaGenArtist(Artist):
    """LlamaGen. The prompt is the number of a class, or a caption."""

    guidance, kind = 4.0, "LlamaGenForImageGeneration"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Captioner | None,
        height: int | None = None,
        width: int | None = None,
    ):
        self.model, self.captioner, config = model, processor, model.config
        if not config.classes and processor is None:
            raise MmspecError("this LlamaGen draws captions, and processor is None: give a Captioner")
        self.codes, self.scale, self.grid = config.vocab_size, config.scale, Grid(config.side, config.side)
        side = config.side * config.scale
        if {height, width} - {None, side}:
            raise MmspecError(f"this LlamaGen draws pictures of {side}x{side} pixels alone: leave the size out")

    def target(self, weights_hash: str) -> LlamaGenTarget:
        return LlamaGenTarget(self.model, weights_hash)

    def read(self, prompt: str) -> list[int]:
        """The class that a prompt names."""
        classes = self.model.config.classes
        if not (prompt.strip().isdecimal() and int(prompt) < classes):
            raise MmspecError(
                f"this LlamaGen draws classes by their numbers, 0 to {classes - 1}, and the prompt is {prompt!r}: "
                "give a number (those of ImageNet, where 207 is a golden retriever)"
            )
        return [int(prompt)]

    def unconditional(self, prompt: list[int]) -> list[int]:
        """The same ids, which the target reads as no class or no caption."""
        return prompt

    def encode(self, prompts: list[str], guidance: float) -> Prompts:
        captioner, most = self.captioner, self.model.config.caption_length
        if captioner is None or self.model.config.classes:
            rows = [self.read(prompt) for prompt in prompts]
            return Prompts(rows, rows if guidance != 1 else None, float(guidance))
        read = [captioner(prompt) for prompt in prompts]
        rows = [ids for ids, _ in read]
        if max(map(len, rows)) > most:
            raise MmspecError(f"a prompt has {max(map(len, rows))} tokens and this model reads {most}: shorten it")
        captions = [caption for _, caption in read]
        return CaptionPrompts(rows, rows if guidance != 1 else None, float(guidance), captions=captions)

    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        raise MmspecError(
            "there is no VQ model for the codes of this LlamaGen: put its file (vq_ds16_c2i.pt or the like) into the "
            "folder; output_type='latent' gives the codes themselves"
        )


class LlamaGenPipeline(FamilyImagePipeline):
    """Draws with a folder of LlamaGen's released files: `c2i_*` or `t2i_*`, `vq_*`, and for captions a folder of T5.

    >>> pipe = mmspec.pipeline("text-to-image", "llamagen")
    >>> pipe("207", seed=1).images[0]
    """

    def check_decoder(self) -> None:
        if not isinstance(self.image_tokenizer, VQImageTokenizer):
            self.artist.pixels(torch.zeros(1, 1, 1))

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        if loading:
            raise MmspecError(f"LlamaGen is no model of transformers: leave {', '.join(loading)} out")
        parts: dict = {}
        if "image_tokenizer" not in components:
            parts["image_tokenizer"] = load_tokenizer(folder)
        image_tokenizer = (components | parts)["image_tokenizer"]
        if isinstance(image_tokenizer, str | Path):
            raise MmspecError(f"image_tokenizer is {image_tokenizer}: put LlamaGen's VQ file into the model's folder")
        if "transformer" not in components:
            scale = 16 if image_tokenizer is None else image_tokenizer.scale
            height, width = (components.get(name) for name in ("height", "width"))
            if height and (height != width or height % scale):
                raise MmspecError(f"a size of {width}x{height} is not possible: give a square, a multiple of {scale}")
            parts["transformer"] = load_model(folder, height and height // scale, scale, dtype)
        if "processor" not in components:
            captions = not (components | parts)["transformer"].config.classes
            parts["processor"] = load_captioner(folder, dtype) if captions else None
        return parts

    def save_parts(self, folder: Path, **options: object) -> None:
        """Each part as transformers and diffusers save it."""
        self.transformer.save_pretrained(folder, **options)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        if isinstance(self.image_tokenizer, VQImageTokenizer):
            self.image_tokenizer.model.save_pretrained(folder / "vqvae")
