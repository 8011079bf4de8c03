"""Drafters: cheap guessers of what the target will say. `registry` finds them by name.

Names are known without importing torch; whatever else is asked for is imported then.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmspec.drafters.table import names, usable

if TYPE_CHECKING:
    from mmspec.drafters.base import Drafter, TrainedDrafter
    from mmspec.drafters.registry import by_name, load

_HOMES = {"Drafter": "base", "TrainedDrafter": "base", "by_name": "registry", "load": "registry"}

__all__ = ["Drafter", "TrainedDrafter", "by_name", "load", "names", "usable"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mmspec.drafters' has no attribute {name!r}")
    return getattr(import_module(f"mmspec.drafters.{_HOMES[name]}"), name)
