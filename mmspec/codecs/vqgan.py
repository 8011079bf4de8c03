"""VQGAN decoders in the layout of taming-transformers, such as the one that Chameleon's original checkpoint has and
transformers' Chameleon lacks.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
import yaml
from diffusers.models.autoencoders.vae import Decoder
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mmspec.errors import MmspecError, short

# Options of the original `ddconfig` that change the decoder, with Chameleon's values, which alone are built here.
BUILT = {
    "attn_type": "vanilla",
    "use_linear_attn": False,
    "resamp_with_conv": True,
    "give_pre_end": False,
    "tanh_out": False,
}
# Parts of diffusers' decoder, and of the original one; `up` counts from the last level (`_original_name`).
NAMES = (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    ("to_out.0", "proj_out"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("resnets", "block"),
    ("attentions", "attn"),
    ("upsamplers.0", "upsample"),
)


@dataclass(frozen=True, slots=True)
class VQGANConfig:
    """The shape of a VQGAN decoder, under the names of the original's `params` and `ddconfig`.

    Level i has `ch * ch_mult[i]` channels and pictures of `resolution / 2**i` pixels; levels whose pictures have one of
    `attn_resolutions` attend after each of their `num_res_blocks + 1` blocks.
    """

    n_embed: int
    embed_dim: int
    z_channels: int
    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...] = ()
    out_ch: int = 3

    @classmethod
    def read(cls, path: Path) -> "VQGANConfig":
        """The shape that a `vqgan.yaml` describes. Raises MmspecError for what is not built here."""
        try:
            params = yaml.safe_load(path.read_text())["model"]["params"]
            values = {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"]} | params["ddconfig"]
            return cls._of(values | {"remap": params.get("remap")}, path)
        except MmspecError:
            raise
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise MmspecError(
                f"{path} does not describe a VQGAN ({short(error)}): it needs n_embed, embed_dim and ddconfig under "
                "model.params; restore it from the model's source"
            ) from None

    @classmethod
    def of_model(cls, config: PreTrainedConfig) -> "VQGANConfig":
        """The shape of the decoder that belongs to the encoder of a `ChameleonVQVAE`."""
        names = {
            "n_embed": "num_embeddings",
            "z_channels": "latent_channels",
            "ch": "base_channels",
            "ch_mult": "channel_multiplier",
        }
        same = ("embed_dim", "resolution", "num_res_blocks", "attn_resolutions", "attn_type")
        values = {name: getattr(config, theirs) for name, theirs in names.items()}
        return cls._of(values | {name: getattr(config, name) for name in same}, "vq_config of the model's config.json")

    @classmethod
    def _of(cls, values: dict, source: object) -> "VQGANConfig":
        wrong = [name for name, value in BUILT.items() if values.get(name, value) != value]
        if wrong or values.get("remap") is not None:
            name = (wrong or ["remap"])[0]
            raise MmspecError(
                f"{source} has {name} {values[name]}, with which mmspec cannot decode: use Chameleon's VQGAN"
            )
        config = cls(
            **{name: int(values[name]) for name in ("n_embed", "embed_dim", "z_channels", "resolution", "ch")},
            ch_mult=tuple(map(int, values["ch_mult"])),
            num_res_blocks=int(values["num_res_blocks"]),
            attn_resolutions=tuple(map(int, values.get("attn_resolutions") or ())),
            out_ch=int(values.get("out_ch", 3)),
        )
        if not config.ch_mult or config.ch < 1 or any(config.ch * factor % 32 for factor in config.ch_mult):
            raise MmspecError(f"{source}: ch {config.ch} times each of ch_mult {config.ch_mult} is no multiple of 32")
        return config

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        params = {name: values.pop(name) for name in ("n_embed", "embed_dim")}
        path.write_text(yaml.safe_dump({"model": {"params": params | {"ddconfig": values}}}))


class VQGANTokenizer(nn.Module):
    """Codes to pictures by a VQGAN: the codebook, `post_quant_conv`, and the decoder, which is diffusers' own.

    See `codecs.base.ImageTokenizer`. Layout: CompVis/taming-transformers, facebookresearch/chameleon
    (`chameleon/inference/vqgan.py`).
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        levels = range(len(config.ch_mult))
        attends = [config.resolution // 2**level in config.attn_resolutions for level in levels]
        self.codes, self.scale = config.n_embed, 2 ** (len(levels) - 1)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.n_embed, config.embed_dim)})
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.decoder = Decoder(
            config.z_channels,
            config.out_ch,
            tuple(f"{'Attn' * attends[level]}UpDecoderBlock2D" for level in reversed(levels)),
            tuple(config.ch * factor for factor in config.ch_mult),
            config.num_res_blocks,
        )

    @property
    def codebook(self) -> Float[Tensor, "code width"]:
        """The vectors of the codes."""
        weight = self.quantize["embedding"].weight
        assert isinstance(weight, Tensor)
        return weight

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "row height width"]) -> Float[Tensor, "row 3 y x"]:
        """Pictures in -1..1."""
        latents = self.quantize["embedding"](codes.to(self.codebook.device)).movedim(3, 1)
        return self.decoder(self.post_quant_conv(latents)).clamp(-1, 1)

    @classmethod
    def from_pretrained(cls, path: str | Path, config: VQGANConfig | None = None) -> "VQGANTokenizer":
        """The decoder in an original checkpoint, in float32.

        `path` is a file of safetensors, or a pickle that holds tensors alone, under `state_dict` or not. A `.yaml` of
        the same name beside it describes its shape; otherwise `config` does. Raises MmspecError for tensors that are
        missing, left over or of another shape, by name.
        """
        file = Path(path)
        if file.with_suffix(".yaml").is_file():
            config = VQGANConfig.read(file.with_suffix(".yaml"))
        elif config is None:
            raise MmspecError(f"{file} has no {file.stem}.yaml beside it, which says the decoder's shape: put it there")
        with torch.device("meta"):
            model = cls(config)
        stored = _read_tensors(file)
        shapes = {model._original_name(name): (name, weight.shape) for name, weight in model.state_dict().items()}
        _refuse(file, "lacks", shapes.keys() - stored.keys())
        decoding = {name for name in stored if name.startswith("decoder.")}
        _refuse(file, "has more tensors than its configuration says:", decoding - shapes.keys())
        weights = {}
        for original, (name, shape) in shapes.items():
            value = stored[original]
            # The projections of attention are convolutions of one pixel there, and matrices here.
            value = value.flatten(1) if value.ndim == 4 and value.shape[2:] == (1, 1) and len(shape) == 2 else value
            if value.shape != shape:
                raise MmspecError(
                    f"{file}: {original} is {tuple(stored[original].shape)}, and {tuple(shape)} is expected: give the "
                    "checkpoint that the configuration belongs to"
                )
            weights[name] = value.float()
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: Path) -> None:
        """Write `vqgan.safetensors`, in the original's layout, and `vqgan.yaml`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {}
        for name, value in self.state_dict().items():
            matrix = value.ndim == 2 and name.startswith("decoder.")
            weights[self._original_name(name)] = (value[..., None, None] if matrix else value).contiguous()
        save_file(weights, folder / "vqgan.safetensors")
        self.config.write(folder / "vqgan.yaml")

    def _original_name(self, name: str) -> str:
        """What the original checkpoint calls a parameter."""
        for ours, theirs in NAMES:
            name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, name)
        last = len(self.config.ch_mult) - 1
        return re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, SafetensorError, ValueError, KeyError) as error:
        raise MmspecError(
            f"{file} cannot be read ({short(error)}): give safetensors, or a pickle of tensors alone, which "
            "torch.load(weights_only=True) reads"
        ) from None
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    named = stored.items() if isinstance(stored, dict) else ()
    return {name: value for name, value in named if isinstance(value, Tensor)}


def _refuse(file: Path, what: str, names: set[str]) -> None:
    """Raise MmspecError that names tensors, if there are any."""
    if names:
        shown: Sequence[str] = sorted(names)
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise MmspecError(f"{file} {what} {', '.join(shown[:3])}{more}: give the model's original VQGAN checkpoint")
