"""What `TextToSpeechPipeline` is given: the arguments of a call, and parts that must be of one model."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec.codecs.base import Codec
from mmspec.errors import MmspecError
from mmspec.pipelines.base import GenerateOptions, StepCallback
from mmspec.pipelines.outputs import TextToSpeechOutput
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.session import Session


class SpeechOptions(GenerateOptions, total=False):
    """The arguments of `TextToSpeechPipeline` beside the text."""

    voice: str | None
    seed: int | list[int] | None
    generator: torch.Generator | None
    stream_to: Callable[[Tensor], object] | None
    callback_on_step_end: StepCallback | None
    callback: Callable[[TextToSpeechOutput], object] | None
    reference: str | Path | Reference | None
    output_type: Literal["audio", "codes"]
    session: Session | None


def recording(reference: str | Path | Reference | None) -> Reference | None:
    """A reference that was given as a file alone."""
    return Reference(Path(reference)) if isinstance(reference, str | Path) else reference


def check_parts(
    tokenizer: PreTrainedTokenizerBase,
    transformer: PreTrainedModel,
    codec: Codec,
    voices: list[str],
    interleaved: bool,
) -> None:
    """Raise MmspecError for parts that are not of one model."""
    if not isinstance(codec, Codec):
        raise MmspecError(
            f"codec is a {type(codec).__name__}, which is no codec: give a MelCodec, or HubCodec(model) for one of "
            "transformers"
        )
    vocabulary = tokenizer.get_vocab()
    missing = [voice for voice in voices if f"<{voice}>" not in vocabulary]
    if missing or not voices:
        raise MmspecError(
            f"the tokenizer has no token <{missing[0]}>: name its voices"
            if missing
            else "voices is empty: name at least one"
        )
    expected = len(tokenizer) + codec.vocabulary_size + 1 + interleaved
    present = transformer.get_output_embeddings().weight.shape[0]
    if present != expected:
        raise MmspecError(
            f"the transformer's vocabulary has {present} tokens instead of {expected}: {len(tokenizer)} of the "
            f"tokenizer, {codec.vocabulary_size} of the codec, the end token"
            f"{' and the boundary token' if interleaved else ''}: give parts of one model"
        )
    if interleaved and codec.frame_tokens > 1:
        raise MmspecError(
            f"interleaved is set, and the codec has {codec.frame_tokens} tokens a frame: give one of a single "
            "token, or "
            "leave it out"
        )
