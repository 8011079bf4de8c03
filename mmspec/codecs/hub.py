"""Codecs of transformers as streams of tokens: Mimi, DAC, Encodec, X-Codec 2."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torchaudio
import transformers
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mmspec import zoo
from mmspec.errors import MmspecError, unknown

# More frames than any row has.
WHOLE = 1 << 40


class Family:
    """One model class: its sizes, and its own encode and decode with codes of one shape."""

    kind = ""

    def __init__(self, model: PreTrainedModel):
        self.model, self.config = model, model.config
        self.codebooks, self.codes, self.frame_samples = self.sizes()

    def sizes(self) -> tuple[int, int, int]:
        """Codebooks of a frame, codes of a codebook, samples of a frame."""
        raise NotImplementedError

    def context(self) -> tuple[int, int]:
        """Frames before and after a frame that influence its samples."""
        return reach(self.model)

    def encode(self, audio: Float[Tensor, "row sample"]) -> Int[Tensor, "row codebook frame"]:
        """Codes in all codebooks of audio that is padded to whole frames."""
        padded = F.pad(audio, (0, -audio.shape[1] % self.frame_samples))
        return self.model.encode(padded[:, None]).audio_codes

    def decode(self, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row *channel sample"]:
        """Samples of codes in the first codebooks."""
        return self.model.decode(audio_codes=codes).audio_values


class Dac(Family):
    """Convolutions alone: its context is exact.

    Decoders with odd strides (24 kHz) give a few samples less than whole frames.
    """

    kind = "DacModel"

    def sizes(self) -> tuple[int, int, int]:
        return self.config.n_codebooks, self.config.codebook_size, self.config.hop_length


class Mimi(Family):
    """Causal. Each layer of its transformer looks one window back, so that all layers together look back further than
    `context`.

    Two windows are taken: 250 frames or 20 s of the released model, within which nothing is lost. On random models of 8
    layers, chunks of longer rows differ from the whole by 2e-8, 2e-5 and 2e-2 of its loudest sample with a layer scale
    of 0.01, 0.1 and 1.
    """

    kind = "MimiModel"

    def sizes(self) -> tuple[int, int, int]:
        return (
            self.config.num_quantizers,
            self.config.codebook_size,
            round(self.config.sampling_rate / self.config.frame_rate),
        )

    def context(self) -> tuple[int, int]:
        before, after = reach(self.model)
        return before + math.ceil(
            2 * self.config.sliding_window * self.config.frame_rate / self.config.encodec_frame_rate
        ), after


class Encodec(Family):
    """The models without chunks (24 and 32 kHz). Its LSTM remembers without bound, but fades: one second of it is
    taken.

    On random models the rest is 1e-11 of the loudest sample, and 6e-5 with LSTM weights three times as large.
    """

    kind = "EncodecModel"

    def sizes(self) -> tuple[int, int, int]:
        config = self.config
        if config.normalize or config.chunk_length_s is not None or config.norm_type != "weight_norm":
            raise MmspecError(
                f"this EncodecModel scales or normalises whole pieces of audio (normalize={config.normalize}, "
                "chunk_length_s="
                f"{config.chunk_length_s}, norm_type={config.norm_type!r}), which tokens do not carry: use one such "
                "as facebook/encodec_24khz"
            )
        return config.num_quantizers, config.codebook_size, config.hop_length

    def context(self) -> tuple[int, int]:
        before, after = reach(self.model)
        # Reflection at the start shows its first convolution that many frames ahead.
        return before + self.config.frame_rate, max(after, self.config.kernel_size - 1)

    def encode(self, audio: Float[Tensor, "row sample"]) -> Int[Tensor, "row codebook frame"]:
        padded = F.pad(audio, (0, -audio.shape[1] % self.frame_samples))
        return self.model.encode(padded[:, None], bandwidth=self.config.target_bandwidths[-1]).audio_codes[0]

    def decode(self, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row *channel sample"]:
        return self.model.decode(codes[None], [None]).audio_values


class Xcodec2(Family):
    """One codebook. Its decoder attends to, and normalises over, all frames: a stream gives the whole at its end.

    With `context=(100, 25)` it gives chunks that hear 2 s before and 0.5 s after themselves, and are not those of the
    whole.
    """

    kind = "Xcodec2Model"

    def sizes(self) -> tuple[int, int, int]:
        return 1, math.prod(self.config.quantization_levels), self.config.hop_length

    def context(self) -> tuple[int, int]:
        return WHOLE, WHOLE

    def encode(self, audio: Float[Tensor, "row sample"]) -> Int[Tensor, "row codebook frame"]:
        """As its feature extractor prepares audio: one more sample, then padding to whole frames."""
        extract = transformers.Xcodec2FeatureExtractor(
            sampling_rate=self.config.sampling_rate, hop_length=self.frame_samples
        )
        rows = list(audio.float().cpu())
        inputs = extract(rows, sampling_rate=self.config.sampling_rate, return_tensors="pt").to(audio.device)
        features, mask = inputs["input_features"].to(audio.dtype), inputs["input_features_mask"]
        return self.model.encode(inputs["input_values"].to(audio.dtype), features, input_features_mask=mask).audio_codes


FAMILIES: dict[str, type[Family]] = {"dac": Dac, "encodec": Encodec, "mimi": Mimi, "xcodec2": Xcodec2}


def reach(model: PreTrainedModel) -> tuple[int, int]:
    """Frames before and after a frame that the decoder's convolutions show it."""
    named = [layer for name, layer in model.named_modules() if name.startswith(("decoder", "upsample"))]
    convolutions = [layer for layer in named if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)]
    causal = getattr(model.config, "use_causal_conv", False)
    samples = math.prod(layer.stride[0] for layer in convolutions)
    first, last = receptive_field(convolutions, samples, model.config.trim_right_ratio if causal else None)
    return -first, last


def receptive_field(
    convolutions: Sequence[nn.Conv1d | nn.ConvTranspose1d], samples: int, trim: float | None = None
) -> tuple[int, int]:
    """The first and last input of a row of convolutions that its first `samples` outputs depend on, followed back.

    Causal ones cut the share `trim` of what their transposed layers have too much from the end.
    """
    low, high, causal = 0, samples - 1, trim is not None
    for layer in reversed(convolutions):
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        if isinstance(layer, nn.ConvTranspose1d):
            over = kernel - stride
            cut = over // 2 if trim is None else over - math.ceil(over * trim)
            low, high = -((kernel - 1 - cut - low) // stride), (high + cut) // stride
        else:
            span = (kernel - 1) * layer.dilation[0]
            after = 0 if causal else span // 2
            low, high = low - span + after, high + after
    return low, high


def family_of(kind: str) -> type[Family]:
    """The family of a `config.model_type`, which the installed transformers must have."""
    if kind not in FAMILIES:
        raise unknown("codec model_type", kind, FAMILIES)
    family = FAMILIES[kind]
    if not hasattr(transformers, family.kind):
        raise MmspecError(
            f"transformers {transformers.__version__} has no {family.kind}: pip install --upgrade transformers"
        )
    return family


def _load_folder(folder: Path) -> PreTrainedModel:
    """The codec model in a folder, in float32. Raises MmspecError that says which file is wrong."""
    path = folder / "config.json"
    try:
        kind = str(json.loads(path.read_text()).get("model_type") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None
    model_class = getattr(transformers, family_of(kind).kind)
    return zoo.load_component(folder.parent, folder.name, model_class, dtype=torch.float32)


class HubCodec:
    """A transformers codec; the K codes of a frame are K tokens in codebook order, token = code + k * codebook size.

    `codebooks` takes the first K only; `context` replaces what the family takes, for streams that are faster or more
    exact.
    """

    kind = "hub"

    def __init__(self, model: PreTrainedModel, codebooks: int | None = None, context: Sequence[int] | None = None):
        channels = getattr(model.config, "audio_channels", 1)
        if channels != 1:
            raise MmspecError(f"this {type(model).__name__} has {channels} audio channels: use a codec of one channel")
        self.model, self.family = model.eval(), family_of(model.config.model_type)(model)
        self.frame_tokens = self.family.codebooks if codebooks is None else codebooks
        if not 1 <= self.frame_tokens <= self.family.codebooks:
            raise MmspecError(
                f"codebooks is {codebooks}, and this {type(model).__name__} has {self.family.codebooks}: take 1 to "
                "all of them"
            )
        self.sampling_rate, self.frame_samples = model.config.sampling_rate, self.family.frame_samples
        self.vocabulary_size = self.frame_tokens * self.family.codes
        self.context = self.family.context() if context is None else (context[0], context[1])

    @property
    def options(self) -> dict[str, object]:
        """What the model's own files do not hold."""
        return {"codebooks": self.frame_tokens, "context": list(self.context)}

    def save_pretrained(self, folder: Path) -> None:
        """Save the model as transformers does."""
        self.model.save_pretrained(folder)

    def to(self, device: torch.device) -> "HubCodec":
        """Move the model; its precision stays."""
        self.model.to(device=device)
        return self

    @classmethod
    def from_pretrained(
        cls, name: str | Path, codebooks: int | None = None, context: Sequence[int] | None = None, **options: object
    ) -> "HubCodec":
        """A codec by folder or hub id; `options` go to the model's own from_pretrained."""
        if Path(name).is_dir() and not options:
            return cls(_load_folder(Path(name)), codebooks, context)
        try:
            kind = transformers.PreTrainedConfig.get_config_dict(name)[0].get("model_type", "")
            family = family_of(kind)
            model = getattr(transformers, family.kind).from_pretrained(name, **options)
        except OSError as error:
            raise MmspecError(
                f"no codec {name} ({str(error).strip().splitlines()[0]}): give a folder or a hub id of a codec"
            ) from None
        return cls(model, codebooks, context)

    # Not inference_mode: Mimi keeps its codebooks from the first call, and they would be refused in training ever
    # after.
    @torch.no_grad()
    def encode(self, audio: Float[Tensor, "row sample"], sampling_rate: int) -> Int[Tensor, "row token"]:
        if not audio.shape[1]:
            raise MmspecError("the audio has no samples: give at least one")
        audio = torchaudio.functional.resample(audio.to(self.model.device), sampling_rate, self.sampling_rate)
        codes = self.family.encode(audio.to(self.model.dtype))[:, : self.frame_tokens].long()
        return rearrange(codes + self._firsts(), "row codebook frame -> row (frame codebook)")

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row sample"]:
        count, width = tokens.shape[1], self.frame_tokens
        if count % width:
            raise MmspecError(f"{count} tokens are not whole frames of {width}: give a multiple of {width}")
        if not count:
            return torch.zeros(len(tokens), 0, dtype=self.model.dtype, device=self.model.device)
        codes = (
            rearrange(tokens.to(self.model.device), "row (frame codebook) -> row codebook frame", codebook=width)
            - self._firsts()
        )
        self._check(tokens, codes)
        audio = self.family.decode(codes).flatten(1)
        return F.pad(audio, (0, count // width * self.frame_samples - audio.shape[1]))

    def _firsts(self) -> Int[Tensor, "codebook 1"]:
        """The first token of each codebook."""
        return torch.arange(0, self.vocabulary_size, self.family.codes, device=self.model.device)[:, None]

    def _check(self, tokens: Int[Tensor, "row token"], codes: Int[Tensor, "row codebook frame"]) -> None:
        """Every token lies in its codebook."""
        bad = ((codes < 0) | (codes >= self.family.codes)).nonzero()
        if len(bad):
            row, book, frame = bad[0].tolist()
            position, first = frame * self.frame_tokens + book, book * self.family.codes
            raise MmspecError(
                f"token {int(tokens[row, position])} at position {position} is not in codebook {book}, "
                f"whose tokens are {first} to {first + self.family.codes - 1}: "
                "give the tokens of a frame in codebook order"
            )
