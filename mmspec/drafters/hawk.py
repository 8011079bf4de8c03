"""Hawk: horizontal and vertical heads over the target's grid (arXiv 2510.25739)."""

from mmspec.drafters.heads import HeadDrafter
from mmspec.errors import MmspecError
from mmspec.targets.base import Target


class HawkDrafter(HeadDrafter):
    """With acceptance `rejection` it drafts and verifies as the paper does: a pool of draws, each with its own head's
    law. With `exact` the heads are pooled log-linearly and candidates are ranked by log q + g (coupled).
    """

    name = "hawk"

    @classmethod
    def default_options(cls, target: Target) -> dict:
        if target.grid is None:
            raise MmspecError(
                "hawk drafts pictures, by the row above: this model's tokens fill no grid, so train hawk-path, "
                "medusa or vadusa"
            )
        return {"neighbours": [[0, 2], [0, 3], [0, 4], [0, 5], [1, 0]]}
