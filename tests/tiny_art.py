"""Random pictures in the place of downloaded emoji."""

from pathlib import Path

import numpy as np

NAMES = ("cat", "dog", "sun", "red heart")


def write_art(folder: Path, size: int = 16) -> None:
    """The cache that `build` reads: random pictures of every name and style, two of them held out."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [name for name in NAMES for _ in range(3)]
    np.savez(
        folder / f"pictures-{size}-0.05-0.npz",
        rgba=rng.integers(0, 256, (len(names), size, size, 4), dtype=np.uint8),
        names=names,
        styles=["3d", "flat", "cartoon"] * len(NAMES),
        held=[i in (1, 5) for i in range(len(names))],
        categories=["Animals & Nature" if name != "red heart" else "Smileys & Emotion" for name in names],
    )
