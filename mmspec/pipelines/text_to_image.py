"""Text to image: a prompt, a decoder-only model over VQ codes, pictures."""

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

import diffusers
import torch
from diffusers import DiffusionPipeline, VQModel
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec import zoo
from mmspec.codecs.base import ImageTokenizer
from mmspec.codecs.vq import VQImageTokenizer
from mmspec.engine.loop import Stop
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, unknown
from mmspec.pipelines import check_task
from mmspec.pipelines.base import GenerateOptions, Pipeline, StepCallback, load_transformer
from mmspec.pipelines.families import draws, pipeline_class
from mmspec.pipelines.image_output import TextToImageOutput
from mmspec.pipelines.loading import HUB_OPTIONS, Loading, load_tokenizer
from mmspec.pipelines.outputs import Images, PartialImages
from mmspec.pipelines.request import ImageRequest
from mmspec.pipelines.session import Session
from mmspec.pipelines.vocabulary import Vocabulary, warning
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.image import ImageTarget

# Brightness of positions that have no code yet.
UNDECODED = 0.75

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class TextToImagePipeline(Pipeline[ImageTarget], DiffusionPipeline):
    """Draws pictures with an autoregressive model, drafted by `drafter` and verified by the model.

    >>> pipe = TextToImagePipeline.from_pretrained("emoji-64", torch_dtype=torch.bfloat16)
    >>> pipe("a red heart, 3d style", seed=7).images[0]

    Codes come after the tokenizer's tokens in the transformer's vocabulary, and an end-of-row token after them. The VQ
    model always decodes in float32.
    """

    article = "a text-to-image"
    parts: ClassVar[tuple[str, ...]] = ("tokenizer", "transformer", "vqvae")
    _progress_bar_config: dict = {}
    settings: ClassVar = {
        "grid_height": int,
        "grid_width": int,
        "end_of_row": bool,
        "drafter": str,
        "guidance_scale": (int, float),
        "temperature": (int, float),
        "max_prompt_tokens": int,
    }

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transformer: PreTrainedModel,
        vqvae: VQModel,
        grid_height: int = 16,
        grid_width: int = 16,
        end_of_row: bool = False,
        drafter: str = "jacobi",
        guidance_scale: float = 2.0,
        temperature: float = 1.0,
        max_prompt_tokens: int = 64,
    ):
        self.image_tokenizer: ImageTokenizer = VQImageTokenizer(vqvae)
        DiffusionPipeline.__init__(self)
        self.register_modules(tokenizer=tokenizer, transformer=transformer, vqvae=vqvae.float())
        self.register_to_config(
            grid_height=grid_height,
            grid_width=grid_width,
            end_of_row=end_of_row,
            drafter=drafter,
            guidance_scale=guidance_scale,
            temperature=temperature,
            max_prompt_tokens=max_prompt_tokens,
        )
        self._begin()

    @property
    def drafter(self) -> str:  # type: ignore[override]
        return self.config.drafter

    @property
    def temperature(self) -> float:  # type: ignore[override]
        return self.config.temperature

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that the model was trained on, None where its folder does not say."""
        return Vocabulary.of(self.folder)

    @property
    def grid(self) -> Grid:
        return Grid(self.config.grid_height, self.config.grid_width, self.config.end_of_row)

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: object) -> "TextToImagePipeline":
        """See `Pipeline`; a folder of transformers or diffusers whose family draws gives its own pipeline."""
        hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
        check = partial(check_task, task="text-to-image")
        folder = zoo.resolve(model, allow_transformers=True, check=check, **hub)
        if cls is not TextToImagePipeline or ((folder / zoo.INDEX).is_file() and not draws(folder)):
            return super().from_pretrained(folder, **options)
        return pipeline_class(folder).from_pretrained(folder, **options)

    @classmethod
    def load_parts(cls, folder: Path, index: dict, dtype: torch.dtype, components: dict, loading: Loading) -> dict:
        parts: dict = {}
        if "tokenizer" not in components:
            parts["tokenizer"] = load_tokenizer(folder)
        if "transformer" not in components:
            parts["transformer"] = load_transformer(folder, index, dtype, **loading)
        if "vqvae" not in components:
            options: dict[str, Any] = dict(torch_dtype=torch.float32, low_cpu_mem_usage=False)
            parts["vqvae"] = zoo.load_component(folder, "vqvae", VQModel, **options)
        return parts

    def current_settings(self) -> dict[str, object]:
        return {name: self.config[name] for name in self.settings}

    def describe_parts(self) -> None:
        """diffusers writes the index."""

    def save_parts(self, folder: Path, **options: object) -> None:
        DiffusionPipeline.save_pretrained(self, folder, **options)

    def to(self, *args: Any, **kwargs: Any) -> "TextToImagePipeline":
        super().to(*args, **kwargs)
        self.vqvae.to(self.device)
        return self

    def build_target(self, weights_hash: str) -> ImageTarget:
        first = len(self.tokenizer)
        end = first + self.image_tokenizer.codes
        row_end = end if self.grid.end_of_row else None
        return ImageTarget(self.transformer, range(first, end), self.grid, row_end, weights_hash)

    def encode(self, prompts: list[str], guidance_scale: float) -> Prompts:
        """Prompts as token ids, checked; with guidance other than 1 each has its unconditional prompt."""
        most = self.config.max_prompt_tokens
        with self._tokenizer_lock:
            ids = [list(self.tokenizer(prompt, split_special_tokens=True).input_ids) for prompt in prompts]
            empty = list(self.tokenizer("").input_ids)
        for prompt, row in zip(prompts, ids):
            if len(row) > most:
                shown = prompt if len(prompt) < 60 else f"{prompt[:57]}..."
                raise MmspecError(
                    f"prompt {shown!r} has {len(row)} tokens and this model reads at most {most}: shorten it"
                )
        return Prompts(ids, [empty] * len(ids) if guidance_scale != 1 else None, float(guidance_scale))

    def encode_examples(self, rows: list[dict]) -> tuple[Prompts, Stop]:
        """See `Pipeline`; each row has its unconditional prompt."""
        return self.encode([row["prompt"] for row in rows], 0.0), Stop(self.grid.tokens)

    @property
    def default_guidance(self) -> float:
        return self.config.guidance_scale

    def decode(
        self, codes: Int[Tensor, "row position"], request: ImageRequest | None = None, row: int = 0
    ) -> Float[Tensor, "row 3 y x"]:
        """Codes in raster order (without end-of-row tokens; -1 where there is none yet) to pictures in -1..1.

        A decoder that reads prompts too needs to know of which row of a request they are.
        """
        return self.image_tokenizer.decode(codes.clamp(min=0).unflatten(1, (self.grid.height, self.grid.width)))

    def check_decoder(self) -> None:
        """Raise MmspecError if codes cannot be decoded, before they are drawn."""

    def paint(self, tokens: list[list[int]], output_type: str = "pil", request: ImageRequest | None = None) -> Images:
        """Pictures from as many tokens as there are, drawn for a request; positions without one are grey."""
        grid, count = self.grid, self.grid.tokens
        padded = torch.tensor([(row + [-1] * count)[:count] for row in tokens])
        raster = padded[:, grid.before :].unflatten(1, (grid.height, grid.stride))[:, :, : grid.width]
        if output_type == "latent":
            return raster
        codes = raster.flatten(1)
        # One by one: how a decoder rounds depends on how many pictures it decodes, and a seed's picture must not.
        parts = [self.decode(part, request, row) for row, part in enumerate(codes.split(1))]
        pictures = torch.cat(parts).float().cpu() / 2 + 0.5
        missing = rearrange(codes < 0, "row (height width) -> row 1 height width", height=grid.height).float()
        if missing.any():
            missing = torch.nn.functional.interpolate(missing, size=pictures.shape[2:], mode="nearest")
            pictures = torch.where(missing > 0, torch.full_like(pictures, UNDECODED), pictures)
        if output_type == "pt":
            return pictures
        arrays = rearrange(pictures, "row c h w -> row h w c").numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)

    def stream(  # type: ignore[override]
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[PartialImages]:
        """Draw round by round; see `__call__` for the arguments."""
        session = self._start(session)
        guidance = self.config.guidance_scale if guidance_scale is None else guidance_scale
        request = ImageRequest(prompt, seed, generator, num_images_per_prompt, guidance)
        sampling, drafter, rule = self.read_options(options)
        vocabulary = self.vocabulary
        unknown_words = vocabulary.unknown_words(request.prompts) if vocabulary else {}
        if unknown_words:
            warnings.warn(warning(unknown_words), stacklevel=2)
        prompts, total = self.encode(request.prompts, request.guidance), self.grid.tokens
        run = self.load_drafter(session, drafter, prompts, total)
        seeds, stats, paint = request.seeds, GenerationStats(), partial(self.paint, request=request)

        def rounds() -> Iterator[PartialImages]:
            tokens: list[list[int]] = [[] for _ in seeds]
            results = run(
                prompts,
                len(seeds),
                Stop(total),
                sampling=sampling,
                seeds=seeds,
                rule=rule,
                stats=stats,
                cancel=session.interrupted,
            )
            for step, result in enumerate(results):
                for row, new in zip(tokens, result.tokens):
                    row.extend(new)
                copies = [list(row) for row in tokens]
                yield PartialImages(step, copies, result.tokens, stats, seeds, total, paint)

        return rounds()

    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
        session: Session | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextToImageOutput:
        """Draw pictures: a `TextToImageOutput`, or its values as a tuple without `return_dict`.

        Args:
            prompt: what to draw; a list makes a batch.
            seed: row i uses seed + i; a list gives each row its own. The same seed gives the same picture with any
                drafter.
            generator: where seeds are drawn from instead: one generator, or one for each row.
            guidance_scale: how closely to follow the prompt, 0 to 20; 1 is no guidance. The model's default if None.
            output_type: "pil", "np" (`row height width 3` in 0..1), "pt" (`row 3 height width` in 0..1) or "latent",
                the codes (`row height width` of the grid, -1 where none is drawn).
            callback_on_step_end: called as (pipe, step, position, {"tokens", "new", "stats"}) after each round; it may
                set `pipe.interrupt = True` to stop, and positions not yet drawn stay grey.
            options: see `GenerateOptions`.
        """
        if output_type not in OUTPUT_TYPES:
            raise unknown("output_type", output_type, OUTPUT_TYPES)
        if output_type != "latent":
            self.check_decoder()
        parts = self.stream(
            prompt,
            seed=seed,
            generator=generator,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            session=session,
            **options,
        )
        with self.progress_bar(total=self.grid.tokens) as bar:
            for part in parts:
                bar.update(part.position - bar.n)
                if callback_on_step_end:
                    callback_kwargs = {"tokens": part.tokens, "new": part.new, "stats": part.stats}
                    callback_on_step_end(session or self, part.step, part.position, callback_kwargs)
        output = TextToImageOutput(part.images(output_type), part.stats, part.tokens, part.seeds)
        return output if return_dict else output.to_tuple()


# `DiffusionPipeline.from_pretrained` looks for the class that an index names in diffusers alone.
diffusers.TextToImagePipeline = TextToImagePipeline
