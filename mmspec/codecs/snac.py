"""SNAC (Siuzdak et al. 2024, arXiv 2410.14411), a codec of several rates, as a stream of tokens."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchaudio
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmspec.codecs.hub import receptive_field
from mmspec.engine.noise import mix
from mmspec.errors import MmspecError, short

if TYPE_CHECKING:
    from snac import SNAC

# The arguments of a SNAC that it keeps under their names.
KEPT = (
    *("sampling_rate", "encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "decoder_rates"),
    *("attn_window_size", "codebook_size", "codebook_dim", "vq_strides"),
)


class FrameNoise(nn.Module):
    """SNAC's noise block with noise that is a function of the codes of each frame, so that tokens have one sound.

    SNAC itself draws it anew at every call; here the same normal distribution is read from a hash.
    """

    def __init__(self, linear: nn.Module, number: int):
        super().__init__()
        self.linear, self.number = linear, number
        self.frames: Int[Tensor, "row frame"] | None = None

    def forward(self, x: Float[Tensor, "row channel sample"]) -> Float[Tensor, "row channel sample"]:
        assert self.frames is not None, "the codes of a decode are set before it"
        noise = normal(self.frames, x.shape[2] // self.frames.shape[1], self.number)
        return x + noise[:, None].to(x.dtype) * self.linear(x)


def normal(words: Int[Tensor, "row frame"], count: int, use: int) -> Float[Tensor, "row sample"]:
    """`count` standard normal numbers for each word, by Box and Muller; each `use` has its own."""
    numbers = torch.arange(2 * count, dtype=torch.int32, device=words.device)
    bits = mix(mix(mix(words[..., None] + use) + mix(numbers + 1)) ^ 0x5BD1E995)
    uniform = ((bits.to(torch.int64) & 0xFFFFFFFF) + 0.5) * 2.0**-32
    radius, angle = (-2 * uniform[..., :count].log()).sqrt(), 2 * math.pi * uniform[..., count:]
    return (radius * angle.cos()).flatten(1)


class SnacCodec:
    """A SNAC; the codes of a frame are tokens in the order of their beginning, the coarser first.

    With its released strides of 4, 2 and 1 these are seven slots, of codebooks 0, 1, 2, 2, 1, 2, 2, as Orpheus has
    them: token = code + slot * codebook size. Convolutions alone, so that its context is exact.
    """

    kind = "snac"

    def __init__(self, model: "SNAC"):
        if model.attn_window_size is not None:
            raise MmspecError(
                f"this SNAC attends within windows of {model.attn_window_size} steps, which do not stream in frames: "
                "use one without, such as hubertsiuzdak/snac_24khz"
            )
        self.model = model.eval()
        self._options = {name: getattr(model, name) for name in KEPT}
        convolutions = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)]
        longest = model.vq_strides[0]
        steps = [(start, book) for book, stride in enumerate(model.vq_strides) for start in range(0, longest, stride)]
        # The slots of each codebook within a frame.
        order = sorted(steps)
        self.slots = [[slot for slot, (_, book) in enumerate(order) if book == i] for i in range(len(model.vq_strides))]
        self.sampling_rate, self.frame_tokens = model.sampling_rate, len(order)
        self.frame_samples, self.codes = int(model.hop_length) * longest, model.codebook_size
        self.vocabulary_size = self.frame_tokens * self.codes
        first, last = receptive_field(convolutions, self.frame_samples)
        self.context = -(first // longest), last // longest
        self._options["depthwise"] = convolutions[0].groups > 1
        self._noises = self._fix_noise()
        self._options["noise"] = bool(self._noises)

    def _fix_noise(self) -> list[FrameNoise]:
        """Put `FrameNoise` in the place of the noise blocks."""
        noises: list[FrameNoise] = []
        for block in list(self.model.decoder.modules()):
            for name, part in list(block.named_children()):
                if type(part).__name__ in ("NoiseBlock", "FrameNoise"):
                    noises.append(FrameNoise(part.linear, len(noises)))
                    setattr(block, name, noises[-1])
        return noises

    @property
    def options(self) -> dict[str, object]:
        return {}

    def to(self, device: torch.device) -> "SnacCodec":
        """Move the model; its precision stays."""
        self.model.to(device=device)
        return self

    def save_pretrained(self, folder: Path) -> None:
        """Write its arguments and weights, in files of SNAC's own layout but for safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self._options, indent=2) + "\n")
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, **options: object) -> "SnacCodec":
        """The SNAC in a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`, in float32."""
        try:
            from snac import SNAC
        except ModuleNotFoundError as error:
            raise MmspecError(f"SNAC needs {error.name}: pip install 'mmspec[snac]'") from None
        folder = Path(folder)
        weights = folder / "model.safetensors"
        try:
            model = SNAC(**json.loads((folder / "config.json").read_text()))
            if weights.is_file():
                state = load_file(weights)
            else:
                weights = folder / "pytorch_model.bin"
                state = torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise MmspecError(
                f"{folder} holds no SNAC that loads ({short(error)}): give a folder of one, or hubertsiuzdak/snac_24khz"
            ) from None
        return cls(model.float())

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, audio: Float[Tensor, "row sample"], sampling_rate: int) -> Int[Tensor, "row token"]:
        if not audio.shape[1]:
            raise MmspecError("the audio has no samples: give at least one")
        audio = torchaudio.functional.resample(audio.to(self._device), sampling_rate, self.sampling_rate)
        books = self.model.encode(audio[:, None].to(next(self.model.parameters()).dtype))
        frames = torch.empty(len(audio), books[0].shape[1], self.frame_tokens, dtype=torch.long, device=self._device)
        for slots, codes in zip(self.slots, books, strict=True):
            frames[:, :, slots] = rearrange(codes, "row (frame slot) -> row frame slot", slot=len(slots))
        return (frames + self._firsts()).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row sample"]:
        count, width = tokens.shape[1], self.frame_tokens
        if count % width:
            raise MmspecError(f"{count} tokens are not whole frames of {width}: give a multiple of {width}")
        if not count:
            return torch.zeros(len(tokens), 0, device=self._device)
        frames = rearrange(tokens.to(self._device), "row (frame slot) -> row frame slot", slot=width) - self._firsts()
        if ((frames < 0) | (frames >= self.codes)).any():
            raise MmspecError(f"a token is not in its slot's codebook: give a frame's {width} tokens in their order")
        words = torch.zeros_like(frames[..., 0], dtype=torch.int32)
        for slot in range(width):
            words = mix(words + frames[..., slot].to(torch.int32) + 1)
        for noise in self._noises:
            noise.frames = words
        return self.model.decode([frames[:, :, slots].flatten(1) for slots in self.slots])[:, 0]

    def _firsts(self) -> Int[Tensor, "slot"]:
        """The first token of each slot."""
        return torch.arange(0, self.vocabulary_size, self.codes, device=self._device)
