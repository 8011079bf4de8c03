"""Hawk: horizontal and vertical heads over the target's grid (arXiv 2510.25739)."""

from mmspec.drafters.heads import HeadDrafter


class HawkDrafter(HeadDrafter):
    """With acceptance `rejection` it drafts and verifies as the paper does: a pool of draws, each with its own head's
    law. With `exact` the heads are pooled log-linearly and candidates are ranked by log q + g (coupled).
    """

    name = "hawk"
