"""Text to image, in the manner of diffusers."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, VQModel
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec import drafters, zoo
from mmspec.accept import acceptance
from mmspec.codecs import vq
from mmspec.decode import Round, Stop, stream
from mmspec.drafters.cost import measured
from mmspec.errors import MmspecError
from mmspec.metrics import GenerationStats
from mmspec.sampling import Sampling
from mmspec.targets.base import Grid
from mmspec.targets.causal import Prompts
from mmspec.targets.image import ImageTarget


@dataclass
class TextToImageOutput(BaseOutput):
    """Pictures, their codes and seeds, and what they cost."""

    images: Any
    tokens: list[list[int]]
    seeds: list[int]
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class Request:
    """A validated call: what the loop is given."""

    prompts: Prompts
    sampling: Sampling
    seeds: list[int]
    drafter: Any
    rule: Any


class TextToImagePipeline(DiffusionPipeline):
    """Draws pictures with an autoregressive model over VQ codes.

    Components: `tokenizer` (adds `<bos>` and `<image>` itself), `transformer` (any causal LM; image code k has id
    `len(tokenizer) + k`), `vqvae`. Drafters lie in `drafters/` of the model's folder and are loaded when first named.
    """

    model_cpu_offload_seq = "transformer->vqvae"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        transformer: PreTrainedModel,
        vqvae: VQModel,
        grid_height: int,
        grid_width: int,
        end_of_row: bool = False,
        drafter: str = "jacobi",
        guidance_scale: float = 1.0,
        max_prompt_tokens: int = 64,
    ):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, transformer=transformer, vqvae=vqvae)
        self.register_to_config(
            grid_height=grid_height,
            grid_width=grid_width,
            end_of_row=end_of_row,
            drafter=drafter,
            guidance_scale=guidance_scale,
            max_prompt_tokens=max_prompt_tokens,
        )
        self.folder: Path | None = None
        self._drafters: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> "TextToImagePipeline":
        """Load a bundled name, a folder or a hub id; `torch_dtype` is the transformer's, pictures are decoded in float32."""
        folder = zoo.resolve(model)
        zoo.check(folder)
        try:
            pipe = super().from_pretrained(folder, **options)
        except (RuntimeError, ValueError, OSError) as error:
            raise MmspecError(f"the files in {folder} do not fit together ({error}): restore them, or rebuild the model with `mmspec train`") from None
        pipe.vqvae.float()
        pipe.folder = folder
        return pipe

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write all components, and copy the drafters, recipe and card."""
        super().save_pretrained(folder, **options)
        for part in ("drafters", "recipe.yaml", "README.md", "prompts.jsonl"):
            source = self.folder / part if self.folder else None
            if source and source.is_dir():
                shutil.copytree(source, Path(folder) / part, dirs_exist_ok=True)
            elif source and source.exists():
                shutil.copy(source, Path(folder) / part)

    def to(self, *args: Any, **options: Any) -> "TextToImagePipeline":
        """As in diffusers; drafters follow, and pictures are still decoded in float32."""
        super().to(*args, **options)
        self.vqvae.float()
        self.__dict__.pop("target", None)
        self._drafters.clear()
        return self

    @cached_property
    def target(self) -> ImageTarget:
        """The target that the loop verifies with."""
        grid = Grid(self.config.grid_height, self.config.grid_width, self.config.end_of_row)
        name = zoo.weights_hash(self.folder) if self.folder else ""
        return ImageTarget(self.transformer, len(self.tokenizer), self.vqvae.config.num_vq_embeddings, grid, name)

    def drafter(self, name: Any) -> Any:
        """A drafter by name, loaded once; an instance is returned as it is."""
        if not isinstance(name, str):
            return name
        if name not in self._drafters:
            self._drafters[name] = drafters.load(name, self.folder, self.target)
        return self._drafters[name]

    def request(
        self,
        prompt: str | list[str],
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        drafter: Any = None,
        acceptance_rule: Any = "exact",
    ) -> Request:
        """Check everything a user may get wrong, before any work is done."""
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts or any(not text.strip() for text in texts):
            raise MmspecError("the prompt is empty: say what to draw, as in 'a red heart, 3d style'")
        if num_images_per_prompt < 1:
            raise MmspecError(f"num_images_per_prompt={num_images_per_prompt} is out of range: give 1 or more")
        guidance = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if not 0 <= guidance <= 20:
            raise MmspecError(f"guidance_scale={guidance} is out of range: give a number from 0 to 20 (1 is none)")
        if seed is not None and generator is not None:
            raise MmspecError("both seed and generator were given: give one of them")
        if generator is not None:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        sampling = Sampling(temperature, top_k, top_p)
        ids = [self.tokenizer(text.strip()).input_ids for text in texts]
        for text, found in zip(texts, ids, strict=True):
            if len(found) > self.config.max_prompt_tokens:
                raise MmspecError(f"the prompt {text[:40]!r}… has {len(found)} tokens and the model reads {self.config.max_prompt_tokens}: shorten it")
        ids = [found for found in ids for _ in range(num_images_per_prompt)]
        first = seed if seed is not None else int(torch.randint(2**31, ()))
        empty = [self.tokenizer("").input_ids] * len(ids)
        prompts = Prompts(ids, empty if guidance != 1 else None, guidance)
        chosen = self.drafter(self.config.drafter if drafter is None else drafter)
        rule = acceptance(acceptance_rule)
        if getattr(chosen, "cost", False) is None and chosen.nodes is None:
            chosen.cost = measured(self.target, prompts, len(ids), str(self.folder))
        return Request(prompts, sampling, [first + row for row in range(len(ids))], chosen, rule)

    def stream(self, request: Request, stats: GenerationStats | None = None, cancel: Callable[[], bool] = lambda: False) -> Iterator[Round]:
        """The rounds of a checked request."""
        rows = len(request.seeds)
        stop = Stop(self.target.grid.tokens)
        return stream(self.target, request.prompts, rows, stop, request.drafter, request.sampling, request.seeds, request.rule, cancel, stats)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `image place` to pixels `image 3 y x` in -1..1; end-of-row tokens are left out first."""
        grid = self.target.grid
        codes = codes.view(len(codes), grid.height, grid.stride)[:, :, : grid.width].flatten(1)
        return vq.decode(self.vqvae, codes, grid.height, grid.width)

    def __call__(
        self,
        prompt: str | list[str],
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        drafter: Any = None,
        acceptance: Any = "exact",
        output_type: str = "pil",
        callback_on_step_end: Callable[["TextToImagePipeline", int, int, dict], dict] | None = None,
        return_dict: bool = True,
    ) -> TextToImageOutput | tuple:
        """Draw pictures; the same seed gives the same picture with every drafter under acceptance `exact`.

        Args:
            seed: of the first picture; picture i of the call has seed + i. Random if neither seed nor `generator` is given.
            guidance_scale: 1 is none; the model's own default otherwise.
            temperature: 0 is greedy.
            drafter: a name (see `mmspec info`) or an instance; "none" is plain autoregressive decoding.
            acceptance: "exact", "rejection", "tolerance:3", "typical".
            output_type: "pil", "np" (`b h w 3`, 0..1) or "pt" (`b 3 h w`, 0..1).
            callback_on_step_end: called after every round with (pipeline, round, tokens drawn, {"tokens": ...}).
        """
        if output_type not in ("pil", "np", "pt"):
            raise MmspecError(f"output_type={output_type!r} is unknown: give 'pil', 'np' or 'pt'")
        asked = self.request(prompt, seed, generator, num_images_per_prompt, guidance_scale, temperature, top_k, top_p, drafter, acceptance)
        stats = GenerationStats()
        tokens: list[list[int]] = [[] for _ in asked.seeds]
        with self.progress_bar(total=self.target.grid.tokens * len(tokens)) as bar:
            for step, new in enumerate(self.stream(asked, stats)):
                for row, found in zip(tokens, new.tokens, strict=True):
                    row.extend(found)
                bar.update(sum(map(len, new.tokens)))
                if callback_on_step_end:
                    callback_on_step_end(self, step, sum(map(len, tokens)), {"tokens": new.tokens})
        pixels = self.decode(torch.tensor(tokens)) / 2 + 0.5
        images: Any = pixels
        if output_type != "pt":
            images = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = [Image.fromarray(np.round(image * 255).astype(np.uint8)) for image in images]
        out = TextToImageOutput(images=images, tokens=tokens, seeds=asked.seeds, stats=stats)
        return out if return_dict else (out.images, out.stats)
