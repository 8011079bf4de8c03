"""Chameleon's kin that draw: Anole, and Lumina-mGPT, which has sizes and rows. Their codes are decoded by the VQGAN of
the original checkpoint.
"""

from pathlib import Path
from typing import Unpack

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mmspec import zoo
from mmspec.codecs.vqgan import VQGANConfig, VQGANTokenizer
from mmspec.errors import MmspecError, short
from mmspec.pipelines.artist import Artist
from mmspec.pipelines.families import given_decoder, no_decoder
from mmspec.pipelines.generation_config import read_generation_config
from mmspec.pipelines.loading import Loading
from mmspec.targets.base import Grid
from mmspec.targets.chameleon import ChameleonTarget, LuminaTarget

# Weights that are kept in bfloat16 differ from those they were made of by less than this share.
BF16 = 2**-7


class ChameleonArtist(Artist):
    """Models of Chameleon's layout, such as Anole; guidance is against the beginning of a sequence alone."""

    guidance, kind = 3.0, "ChameleonForConditionalGeneration"

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        super().__init__(model, processor)
        vq = model.config.vq_config
        self.codes, self.scale = vq.num_embeddings, 2 ** (len(vq.channel_multiplier) - 1)
        self.grid = self._grid(height, width)

    def _grid(self, height: int | None, width: int | None) -> Grid:
        side = self.model.config.vq_config.resolution
        if {height, width} - {None, side}:
            raise MmspecError(f"this Chameleon draws {side}x{side} pixels alone: leave the size out")
        return Grid(side // self.scale, side // self.scale)

    def target(self, weights_hash: str) -> ChameleonTarget:
        return ChameleonTarget(self.model, weights_hash)

    def read(self, prompt: str) -> list[int]:
        ids = self.processor(text=[prompt], return_tensors="pt")["input_ids"][0].tolist()
        return [*ids, self.processor.image_start_token_id]

    def unconditional(self, prompt: list[int]) -> list[int]:
        return [self.processor.tokenizer.bos_token_id, self.processor.image_start_token_id]

    def pixels(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        raise no_decoder("chameleon")

    def load_decoder(self, path: Path) -> VQGANTokenizer:
        """The VQGAN of an original checkpoint. Raises MmspecError for one of other codes than the model's."""
        file = given_decoder(path)
        decoder = VQGANTokenizer.from_pretrained(file, VQGANConfig.of_model(self.model.config.vq_config))
        if (decoder.codes, decoder.scale) != (self.codes, self.scale):
            raise MmspecError(
                f"{file} decodes {decoder.codes} codes of {decoder.scale} pixels, and the model draws {self.codes} of "
                f"{self.scale}: give the decoder that the model was trained with"
            )
        own = getattr(self.model.model, "vqmodel", None)
        if own is None:  # Lumina-mGPT is published without
            return decoder
        for name, ours, theirs in (
            ("quantize.embedding.weight", own.quantize.embedding.weight, decoder.codebook),
            ("post_quant_conv.weight", own.post_quant_conv.weight, decoder.post_quant_conv.weight),
        ):
            if ours.shape != theirs.shape or not torch.allclose(ours.float().cpu(), theirs, rtol=BF16, atol=1e-6):
                raise MmspecError(
                    f"{file} belongs to another codebook: its {name} is not that of the model's own VQ model; give the "
                    "decoder that the model was trained with"
                )
        return decoder


class LuminaArtist(ChameleonArtist):
    """Lumina-mGPT (arXiv 2408.02657). Prompts name the size of the picture, and so do two tokens after its beginning,
    height first, in units of two codes; guidance is against the picture's beginning with its size.

    Names of tokens, template and defaults: Alpha-VLLM/Lumina-mGPT, `lumina_mgpt/inference_solver.py` and
    `lumina_mgpt/data/item_processor.py`.
    """

    guidance, top_k = 4.0, 2000
    template = "Generate an image of {width}x{height} according to the following prompt:\n{prompt}"

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, height: int | None = None, width: int | None = None
    ):
        super().__init__(model, processor, height, width)
        # By this field a folder is told from other Chameleons, also after it is saved by transformers' class.
        model.config.z_loss_weight = getattr(model.config, "z_loss_weight", 0.0)
        sizes = (f"<reserved{8800 + codes // 2:05d}>" for codes in (self.grid.height, self.grid.width))
        self._end_of_turn = self._id("<reserved08706>")
        self._begin = [self._id(name) for name in ("<racm3:break>", *sizes)]

    def _id(self, name: str) -> int:
        """The id of a token by name."""
        ids = self.model.config.vocabulary_map
        if name not in ids:
            raise MmspecError(f"this model's vocabulary_map has no {name}: give a Lumina-mGPT, or a smaller size")
        return ids[name]

    def _grid(self, height: int | None, width: int | None) -> Grid:
        default, unit = self.model.config.vq_config.resolution, 2 * self.scale
        rows, columns = (default if side is None else side for side in (height, width))
        if min(rows, columns) < unit or rows % unit or columns % unit:
            raise MmspecError(f"a size of {columns}x{rows} is not possible: give multiples of {unit} pixels")
        return Grid(rows // self.scale, columns // self.scale, end_of_row=True)

    def target(self, weights_hash: str) -> LuminaTarget:
        return LuminaTarget(self.model, self.grid.height, self.grid.width, weights_hash)

    def read(self, prompt: str) -> list[int]:
        text, tokenizer = self.template.format(prompt=prompt, **self.size), self.processor.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [tokenizer.bos_token_id, *ids, self._end_of_turn, *self._begin]

    def unconditional(self, prompt: list[int]) -> list[int]:
        return self._begin

    @classmethod
    def load_processor(cls, folder: Path) -> ProcessorMixin:
        """The processor in a folder; of its tokenizer where it has no other part."""
        if any((folder / f"{name}_config.json").is_file() for name in ("processor", "preprocessor")):
            return super().load_processor(folder)
        try:
            return ChameleonProcessor(ChameleonImageProcessor(), AutoTokenizer.from_pretrained(folder))
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise MmspecError(
                f"{folder} has no tokenizer that loads ({short(error)}): restore it from the model's source"
            ) from None

    @classmethod
    def load_transformer(cls, folder: Path, dtype: torch.dtype, **loading: Unpack[Loading]) -> PreTrainedModel:
        """The model as Lumina-mGPT publishes it.

        Its norms of queries and keys have one row for each of `model_parallel_size` groups of heads, where transformers
        has one for each head, and the VQ model may be left out, since it draws without.
        """
        if loading:
            raise MmspecError(f"Lumina-mGPT's weights are of its own layout: leave {', '.join(loading)} out")
        kind = ChameleonForConditionalGeneration
        files = sorted(folder.glob("model*.safetensors"))
        for file in files or [folder / "model.safetensors"]:
            zoo.check_weights(file)
        try:
            config = kind.config_class.from_pretrained(folder)
            state = {name: value for file in files for name, value in load_file(file).items()}
            heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
            for name, value in state.items():
                count = heads.get(name.split(".")[-2])
                if count and value.ndim == 2 and len(value) < count:
                    state[name] = value.repeat_interleave(count // len(value), 0)
            options = {"config": config, "state_dict": state, "dtype": dtype, "output_loading_info": True}
            model, report = kind.from_pretrained(None, **options)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise MmspecError(
                f"{folder} does not load as a Lumina-mGPT ({short(error)}): restore it from the model's source"
            ) from None
        if not any(name.startswith("model.vqmodel.") for name in state):
            report["missing_keys"] = {n for n in report["missing_keys"] if not n.startswith("model.vqmodel.")}
            del model.model.vqmodel
        zoo.check_report(report, files[0], folder / "config.json", kind.__name__)
        if described := read_generation_config(folder):
            model.generation_config = GenerationConfig.from_dict(described)
        return model
