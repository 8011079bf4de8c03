"""Drafters: cheap guessers of what the target will say. `registry` finds them by name."""

from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.drafters.registry import by_name, load, names, usable

__all__ = ["Drafter", "TrainedDrafter", "by_name", "load", "names", "usable"]
