"""The bundled speech codec: one codebook over the mel spectrogram that a frozen HiFi-GAN vocoder reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torchaudio
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from mmspec import zoo
from mmspec.errors import MmspecError, short

# What HiFi-GAN V1 reads: 80 slaney mels of 0 to 8,000 Hz at 22,050 Hz, window 1,024, hop 256, natural logarithm.
RATE, WINDOW, HOP, MELS, FLOOR = 22050, 1024, 256, 80, 1e-5


def vocoder(width: int) -> SpeechT5HifiGan:
    """HiFi-GAN V1 (Kong et al. 2020) as transformers has it, without weights."""
    shape = dict(upsample_rates=[8, 8, 2, 2], upsample_kernel_sizes=[16, 16, 4, 4], upsample_initial_channel=width)
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(model_in_dim=MELS, sampling_rate=RATE, normalize_before=False, **shape)
    )


class Block(nn.Module):
    """x + W2 gelu(W1 * norm(x)), a dilated convolution of three frames.

    The norm is over channels, so no frame sees another's statistics.
    """

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, x: Float[Tensor, "row width frame"]) -> Float[Tensor, "row width frame"]:
        return x + self.second(F.gelu(self.first(self.norm(x.mT).mT)))


class MelCodec(nn.Module):
    """Audio to one stream of `codes` tokens, `stride` mel frames each, and back.

    Codes are compared by cosine in `code_width` dimensions (Yu et al. 2022). The vocoder is never trained.
    """

    kind = "mel"
    sampling_rate = RATE
    frame_tokens = 1
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        width: int = 256,
        code_width: int = 16,
        codes: int = 1024,
        stride: int = 1,
        dilations: Sequence[int] = (1, 3, 1, 3),
        vocoder_width: int = 512,
    ):
        super().__init__()
        self.config: dict[str, object] = dict(width=width, code_width=code_width, codes=codes, stride=stride)
        self.config |= dict(dilations=list(dilations), vocoder_width=vocoder_width)
        self.vocabulary_size, self.frame_samples = codes, stride * HOP
        self.stride = stride
        # Tokens to either side that reach one token's samples: the decoder's blocks at the rate of tokens, then those
        # at
        # the rate of mel frames, its last convolution (3 frames) and the vocoder (12), in tokens.
        reach = sum(dilations) + 1
        self.context = (reach + -(-(reach + 3 + 12) // stride),) * 2
        self.analysis = torchaudio.transforms.MelSpectrogram(
            RATE,
            WINDOW,
            hop_length=HOP,
            f_min=0.0,
            f_max=8000.0,
            n_mels=MELS,
            power=1.0,
            norm="slaney",
            mel_scale="slaney",
            center=False,
        )
        spectrum = self.analysis.spectrogram
        spectrum.window = spectrum.window.clone()  # torch makes it a view of a longer one, which safetensors refuses
        self.register_buffer("mean", torch.zeros(MELS, 1))
        self.register_buffer("deviation", torch.ones(MELS, 1))

        kernel = 2 * stride + stride % 2
        edge = (kernel - stride) // 2

        def blocks() -> list[nn.Module]:
            return [Block(width, dilation) for dilation in dilations]

        self.encoder = nn.Sequential(
            nn.Conv1d(MELS, width, 7, padding=3),
            *blocks(),
            nn.Conv1d(width, width, kernel, stride, edge),
            *blocks(),
            nn.Conv1d(width, code_width, 1),
        )
        self.codebook = nn.Parameter(F.normalize(torch.randn(codes, code_width), dim=1), requires_grad=False)
        self.decoder = nn.Sequential(
            nn.Conv1d(code_width, width, 3, padding=1),
            *blocks(),
            nn.ConvTranspose1d(width, width, kernel, stride, edge),
            *blocks(),
            nn.Conv1d(width, MELS, 7, padding=3),
        )
        self.vocoder = vocoder(vocoder_width).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.codebook.device

    @property
    def options(self) -> dict[str, object]:
        """Nothing: the files hold all that there is."""
        return {}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MelCodec":
        """Read them. Raises MmspecError that says which file is wrong."""
        config, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        try:
            settings = json.loads(config.read_text())
        except (OSError, ValueError) as error:
            raise MmspecError(f"{config} cannot be read ({error}): restore it from the model's source") from None
        zoo.check_weights(weights)
        try:
            codec = cls(**settings)
            codec.load_state_dict(load_file(weights))
        except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
            raise MmspecError(
                f"{weights} holds the weights of another model than {config} describes ({short(error)}): restore them"
            ) from None
        return codec.eval()

    def mel(self, audio: Float[Tensor, "row sample"]) -> Float[Tensor, "row mel frame"]:
        """Log-mel spectrogram of audio at 22,050 Hz, padded with silence to whole tokens."""
        audio = F.pad(audio, (0, -audio.shape[1] % self.frame_samples))
        edge = (WINDOW - HOP) // 2
        padded = F.pad(audio, (0, max(0, edge + 1 - audio.shape[1])))  # reflection needs more samples than it adds
        padded = F.pad(padded[:, None], (edge, edge), mode="reflect")[:, 0, : audio.shape[1] + 2 * edge]
        return self.analysis(padded).clamp(min=FLOOR).log()

    def latents(self, mel: Float[Tensor, "row mel frame"]) -> Float[Tensor, "row token code"]:
        """What is quantised, of length one."""
        return F.normalize(self.encoder((mel - self.mean) / self.deviation).mT, dim=-1)

    def nearest(self, latents: Float[Tensor, "row token code"]) -> Int[Tensor, "row token"]:
        return (latents @ self.codebook.T).argmax(2)

    def spectrogram(self, latents: Float[Tensor, "row token code"]) -> Float[Tensor, "row mel frame"]:
        """The mel spectrogram of quantised latents."""
        return self.decoder(latents.mT) * self.deviation + self.mean

    @torch.inference_mode()
    def encode(self, audio: Float[Tensor, "row sample"], sampling_rate: int = RATE) -> Int[Tensor, "row token"]:
        if not audio.shape[1]:
            return torch.zeros(len(audio), 0, dtype=torch.long, device=self.device)
        audio = torchaudio.functional.resample(audio.to(self.device), sampling_rate, RATE)
        return self.nearest(self.latents(self.mel(audio)))

    @torch.inference_mode()
    def decode(self, tokens: Int[Tensor, "row token"]) -> Float[Tensor, "row sample"]:
        if not tokens.shape[1]:
            return torch.zeros(len(tokens), 0, device=self.device)
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary_size:
            raise MmspecError(f"tokens must be from 0 to {self.vocabulary_size - 1}: give those of this codec")
        return self.vocode(self.spectrogram(self.codebook[tokens.to(self.device)]))

    def vocode(self, mel: Float[Tensor, "row mel frame"]) -> Float[Tensor, "row sample"]:
        """Audio of a log-mel spectrogram, in -1..1."""
        return self.vocoder(mel.mT)
