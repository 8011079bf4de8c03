"""Speculative generation for autoregressive models of images, speech and vision-language.

>>> import mmspec
>>> pipe = mmspec.pipeline("text-to-image")
>>> pipe("a red heart, 3d style", seed=7).images[0].save("heart.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmspec.custom_generate import speculate
    from mmspec.engine.accept import acceptance
    from mmspec.engine.loop import Generation, Round, Stop, generate, stream
    from mmspec.engine.sampling import Sampling, SamplingOptions
    from mmspec.engine.stats import GenerationStats
    from mmspec.errors import MmspecError
    from mmspec.pipelines import pipeline

_HOMES = {
    "acceptance": "engine.accept",
    "Generation": "engine.loop",
    "Round": "engine.loop",
    "Stop": "engine.loop",
    "generate": "engine.loop",
    "stream": "engine.loop",
    "MmspecError": "errors",
    "GenerationStats": "engine.stats",
    "pipeline": "pipelines",
    "speculate": "custom_generate",
    "Sampling": "engine.sampling",
    "SamplingOptions": "engine.sampling",
}

__all__ = [
    "Generation",
    "GenerationStats",
    "MmspecError",
    "Round",
    "Sampling",
    "SamplingOptions",
    "Stop",
    "__version__",
    "acceptance",
    "generate",
    "pipeline",
    "speculate",
    "stream",
]


def __dir__() -> list[str]:
    """All public names, whether they have been used yet or not."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that `mmspec --help` need not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mmspec' has no attribute {name!r}")
    return getattr(import_module(f"mmspec.{_HOMES[name]}"), name)
