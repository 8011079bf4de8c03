"""Text to image: a prompt, a decoder-only model over VQ codes, pictures."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from diffusers import DiffusionPipeline, VQModel
from diffusers.utils import BaseOutput
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec import zoo
from mmspec.engine.accept import acceptance as rule_of
from mmspec.engine.loop import Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, unknown
from mmspec.pipelines.loading import TOKENIZER_LOCK, copy_companions, load_tokenizer, opened, rename_target
from mmspec.pipelines.request import Request
from mmspec.pipelines.solo import Run, Solo
from mmspec.placement import check_pair, dtype_of
from mmspec.targets.base import Grid
from mmspec.targets.causal import Prompts
from mmspec.targets.image import ImageTarget

UNDECODED = 0.75


@dataclass
class TextToImageOutput(BaseOutput):
    """Pictures, and how they came about: codes, seeds and statistics; row i is prompt i // num_images_per_prompt."""

    images: list[PIL.Image.Image] | np.ndarray | Tensor
    stats: GenerationStats
    tokens: list[list[int]]
    seeds: list[int]


@dataclass(frozen=True, slots=True)
class Partial:
    """Pictures in the making after one round: all codes so far, those of this round, and a way to look."""

    step: int
    tokens: list[list[int]]
    new: list[list[int]]
    stats: GenerationStats
    seeds: list[int]
    total: int
    paint: Callable[[list[list[int]], str], Any]

    @property
    def position(self) -> int:
        """Codes of the row that is furthest behind."""
        return min(map(len, self.tokens))

    def images(self, output_type: str = "pil") -> Any:
        """The pictures as they stand; places without a code are grey."""
        return self.paint(self.tokens, output_type)


class TextToImagePipeline(DiffusionPipeline):
    """Draws pictures with an autoregressive model, drafted by `drafter` and verified by the model.

    >>> pipe = TextToImagePipeline.from_pretrained("emoji-64", torch_dtype=torch.bfloat16)
    >>> pipe("a red heart, 3d style", seed=7).images[0]
    """

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
        super().__init__()
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
        self.folder: Path | None = None  # where the model was loaded from
        self.interrupt = False
        self.loop: Callable[..., Run] = Solo()
        self._targets: dict[tuple, ImageTarget] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "TextToImagePipeline":
        """Load a bundled name, a folder or a hub id; `torch_dtype` (or `dtype`) is the transformer's, the VQ model stays in float32.

        Components and settings of `__init__` may be given instead of loaded; options that cannot be honoured are refused.
        """
        folder, dtype, index = opened(cls, "a text-to-image", model, options)
        known = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        parts: dict[str, Any] = {
            key: value for key, value in index.items() if key in known and not isinstance(value, list)
        } | options
        if "tokenizer" not in parts:
            parts["tokenizer"] = load_tokenizer(folder)
        if "transformer" not in parts:
            kind = getattr(transformers, str(index.get("transformer", ["", ""])[1]), None)
            if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
                raise MmspecError(
                    f"{folder / zoo.INDEX}: transformer is {index.get('transformer')}, which is no model class of transformers"
                )
            parts["transformer"] = zoo.load_component(folder, "transformer", kind, dtype=dtype)
        if "vqvae" not in parts:
            parts["vqvae"] = zoo.load_component(
                folder, "vqvae", VQModel, torch_dtype=torch.float32, low_cpu_mem_usage=False
            )
        pipe = cls(**parts)
        pipe.folder = folder
        return pipe

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save all components and copy what else the model's folder holds: drafters, card, recipe."""
        goal = Path(save_directory)
        goal.mkdir(parents=True, exist_ok=True)
        copy_companions(self.folder, goal)
        super().save_pretrained(goal, **options)
        rename_target(goal, self.target.weights_hash)

    def to(self, *args: Any, **kwargs: Any) -> "TextToImagePipeline":
        """Move to a device, and the transformer to a dtype; the VQ model always decodes in float32."""
        kwargs.pop("silence_dtype_warnings", None)
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        check_pair(device or self.device, dtype_of(dtype or self.dtype))
        if device is not None:
            super().to(device)
        if dtype is not None:
            self.transformer.to(dtype)
        return self

    @property
    def grid(self) -> Grid:
        return Grid(self.config.grid_height, self.config.grid_width, self.config.end_of_row)

    @property
    def target(self) -> ImageTarget:
        """The transformer as the loop sees it, on its present device and in its present dtype."""
        model = self.transformer
        key = (id(model), model.device, model.dtype)
        if key not in self._targets:
            name = zoo.weights_hash(self.folder / "transformer") if self.folder else ""
            self._targets = {key: self._image_target(name)}
        return self._targets[key]

    def _image_target(self, weights_hash: str) -> ImageTarget:
        """Codes come after the tokens of the text, and the end-of-row token after the codes."""
        first = len(self.tokenizer)
        end = first + self.vqvae.config.num_vq_embeddings
        row_end = end if self.grid.end_of_row else None
        return ImageTarget(self.transformer, range(first, end), self.grid, row_end, weights_hash)

    def encode(self, prompts: list[str], guidance_scale: float) -> Prompts:
        """Prompts as token ids, checked; with guidance other than 1 each has its unconditional twin."""
        most = self.config.max_prompt_tokens
        with TOKENIZER_LOCK:
            ids = [list(self.tokenizer(prompt, split_special_tokens=True).input_ids) for prompt in prompts]
            empty = list(self.tokenizer("").input_ids)
        for prompt, row in zip(prompts, ids):
            if len(row) > most:
                shown = prompt if len(prompt) < 60 else f"{prompt[:57]}..."
                raise MmspecError(
                    f"prompt {shown!r} has {len(row)} tokens and this model reads at most {most}: shorten it"
                )
        return Prompts(ids, [empty] * len(ids) if guidance_scale != 1 else None, float(guidance_scale))

    def rows(self, asked: list[dict]) -> tuple[Prompts, Stop]:
        """What the loop is given for lines of `prompts.jsonl` as rows of one batch, each with its unconditional twin; and when a row ends."""
        return self.encode([row["prompt"] for row in asked], 0.0), Stop(self.grid.tokens)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "row place"]) -> Float[Tensor, "row 3 height width"]:
        """Codes in raster order (without end-of-row tokens) to pictures in -1..1."""
        vq = self.vqvae
        shape = (
            len(codes),
            self.config.grid_height,
            self.config.grid_width,
            vq.config.vq_embed_dim or vq.config.latent_channels,
        )
        latents = vq.quantize.get_codebook_entry(codes.to(vq.device).flatten(), shape=shape)
        return vq.decode(latents, force_not_quantize=True).sample.clamp(-1, 1)

    def paint(self, tokens: list[list[int]], output_type: str = "pil") -> Any:
        """Pictures from as many tokens as there are; places without one are grey."""
        grid, count = self.grid, self.grid.tokens
        filled = torch.tensor([(row + [-1] * count)[:count] for row in tokens])
        codes = rearrange(filled, "row (height stride) -> row height stride", height=grid.height)[
            :, :, : grid.width
        ].flatten(1)
        found = torch.cat([self.decode(part) for part in codes.clamp(min=0).split(16)]).float().cpu() / 2 + 0.5
        missing = rearrange(codes < 0, "row (height width) -> row 1 height width", height=grid.height).float()
        if missing.any():
            missing = torch.nn.functional.interpolate(missing, size=found.shape[2:], mode="nearest")
            found = torch.where(missing > 0, torch.full_like(found, UNDECODED), found)
        if output_type == "pt":
            return found
        arrays = rearrange(found, "row c h w -> row h w c").numpy()
        return arrays if output_type == "np" else self.numpy_to_pil(arrays)

    def stream(
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
    ) -> Iterator[Partial]:
        """Draw round by round; see `__call__` for the arguments. Closing the iterator, or setting `interrupt`, ends it early."""
        self.interrupt = False
        request = Request(
            prompt,
            seed,
            generator,
            num_images_per_prompt,
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
        )
        sampling = SamplingOptions(
            temperature=self.config.temperature if temperature is None else temperature, top_k=top_k, top_p=top_p
        )
        rule, prompts = rule_of(acceptance), self.encode(request.prompts, request.guidance)
        run = self.loop(self, self.config.drafter if drafter is None else drafter, prompts, self.grid.tokens)
        return self._rounds(request.seeds, run, prompts, sampling=sampling, rule=rule)

    def _rounds(self, seeds: list[int], run: Run, prompts: Prompts, **options: Any) -> Iterator[Partial]:
        stats, total = GenerationStats(), self.grid.tokens
        tokens: list[list[int]] = [[] for _ in seeds]
        rounds = run(
            prompts, len(seeds), Stop(total), seeds=seeds, cancel=lambda: self.interrupt, stats=stats, **options
        )
        for step, found in enumerate(rounds):
            for row, new in zip(tokens, found.tokens):
                row.extend(new)
            yield Partial(step, [list(row) for row in tokens], found.tokens, stats, seeds, total, self.paint)

    def __call__(
        self,
        prompt: str | list[str],
        *,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        output_type: str = "pil",
        callback_on_step_end: Callable[["TextToImagePipeline", int, int, dict], Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Draw pictures: a `TextToImageOutput`, or its values as a tuple without `return_dict`.

        Args:
            prompt: what to draw; a list makes a batch.
            seed: row i uses seed + i; a list gives each row its own. The same seed gives the same picture with any drafter.
            generator: where seeds are drawn from instead: one generator, or one for each row.
            guidance_scale: how closely to follow the prompt, 0 to 20; 1 is no guidance. The model's default if None.
            temperature, top_k, top_p: the sampling law; temperature 0 is greedy, the model's default if None.
            drafter: a name or an instance; "none" is plain autoregressive decoding, None the model's default.
            acceptance: exact, rejection (lossless in law); tolerance:τ with τ > 1 and typical are LOSSY, and the statistics say so.
            output_type: "pil", "np" (`row height width 3` in 0..1) or "pt" (`row 3 height width` in 0..1).
            callback_on_step_end: called as (pipe, step, position, {"tokens", "new", "stats"}) after each round; it may set
                `pipe.interrupt = True` to stop, and places not yet drawn stay grey.
        """
        if output_type not in ("pil", "np", "pt"):
            raise unknown("output_type", output_type, ("pil", "np", "pt"))
        options: dict[str, Any] = dict(
            seed=seed, generator=generator, num_images_per_prompt=num_images_per_prompt, guidance_scale=guidance_scale
        )
        rounds = self.stream(
            prompt, **options, temperature=temperature, top_k=top_k, top_p=top_p, drafter=drafter, acceptance=acceptance
        )
        with self.progress_bar(total=self.grid.tokens) as bar:
            for part in rounds:
                bar.update(part.position - bar.n)
                if callback_on_step_end:
                    callback_on_step_end(
                        self, part.step, part.position, {"tokens": part.tokens, "new": part.new, "stats": part.stats}
                    )
        images = self.paint(part.tokens, output_type)
        out = TextToImageOutput(images=images, stats=part.stats, tokens=part.tokens, seeds=part.seeds)
        return out if return_dict else out.to_tuple()
