"""EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858) as their authors publish them (github.com/SafeAILab/EAGLE)."""

from mmspec.drafters.layouts import Files
from mmspec.drafters.msd import MsdDrafter


class EagleDrafter(MsdDrafter):
    """What MSD is without decoupling: all positions enter through `fc`, those of pictures too."""

    name = "eagle"

    @classmethod
    def released_options(cls, files: Files) -> dict:
        return {"decoupled": False}
