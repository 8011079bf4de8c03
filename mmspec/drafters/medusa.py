"""Medusa: horizontal heads only (Cai et al. 2024)."""

from mmspec.drafters.heads import HeadDrafter


class MedusaDrafter(HeadDrafter):
    """Head k predicts the token k places after the one that the target is about to emit."""

    name = "medusa"
