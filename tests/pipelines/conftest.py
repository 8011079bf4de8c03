"""Small speech pipelines."""

import warnings
from functools import cache
from pathlib import Path

import pytest
from speech_cases import TEXT, dac
from tiny import llama

import mmspec
from mmspec.codecs.hub import HubCodec
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline


@pytest.fixture(scope="module")
def pipe(speech_folder: Path) -> TextToSpeechPipeline:
    return mmspec.pipeline("text-to-speech", str(speech_folder), device="cpu", dtype="fp64")


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Random models hardly ever end by themselves; tests of the warning catch it again."""
    warnings.filterwarnings("ignore", "sentence . (did not end|came out empty)")


@pytest.fixture(scope="module")
def plain(pipe):
    """What plain decoding says."""
    return cache(
        lambda temperature, penalty: (
            pipe(TEXT, seed=4, drafter="none", temperature=temperature, repetition_penalty=penalty).tokens
        )
    )


@pytest.fixture
def hub(pipe) -> TextToSpeechPipeline:
    """A pipeline over a codec of transformers, all of its codebooks."""
    speaker = llama(len(pipe.tokenizer) + 3 * 16 + 1)
    found = TextToSpeechPipeline(pipe.tokenizer, speaker, HubCodec(dac()), ["ada", "ben"], tokens_per_phoneme=4.0)
    found.phonemizer = pipe.phonemizer
    return found


@pytest.fixture(scope="module")
def mixed(pipe) -> TextToSpeechPipeline:
    """A random model that says where its phonemes begin."""
    speaker = llama(len(pipe.tokenizer) + 32 + 2, seed=3)
    options: dict = dict(tokens_per_phoneme=8.0, longest_sentence=50, interleaved=True)
    found = TextToSpeechPipeline(pipe.tokenizer, speaker, pipe.codec, ["ada", "ben"], **options)
    # Boundaries are not rare, even when greedy.
    speaker.lm_head.weight.data[-1] = 2 * speaker.lm_head.weight[len(pipe.tokenizer)]
    found.folder = pipe.folder
    return found
