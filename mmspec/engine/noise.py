"""Positional Gumbel noise: sampling as a function of (seed, position, token)."""

import torch
from jaxtyping import Float
from torch import Tensor

_GOLDEN, _M1, _M2 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix(x: Tensor) -> Tensor:
    """The lowbias32 integer hash, in place on int32 (multiplication wraps, shifts are made logical)."""
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(_M1)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(_M2)
    x ^= (x >> 16) & 0xFFFF
    return x


def _key(seed: int, position: int, use: int) -> tuple[int, int]:
    """Two 32-bit words from (seed, position, use), by splitmix64."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1342543DE82EF95 + use * 0xDA942042E4DD58B5 + 0x632BE59BD9B4E019) & (
        2**64 - 1
    )
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


def uniforms(
    seeds: list[int], positions: list[list[int]], vocabulary: int, use: int, device: torch.device | str
) -> Float[Tensor, "row position vocab"]:
    """Uniform numbers in (0, 1) from (seed, position, token, use): the same on every device, in any order or batch.

    Small values keep their full relative precision (32 random bits), so that Gumbel maxima over large vocabularies do not tie.
    """
    keys = torch.tensor(
        [[_key(seed, p, use) for p in row] for seed, row in zip(seeds, positions, strict=True)], dtype=torch.int64
    )
    keys = (keys - ((keys >> 31) << 32)).to(torch.int32).to(device)
    x = torch.arange(vocabulary, dtype=torch.int32, device=device) * _signed(_GOLDEN)
    x = _mix(x + keys[..., :1])
    x = _mix(x ^ keys[..., 1:])
    low = (x & 0xFFFF).float() + 0.5
    high = ((x >> 16) & 0xFFFF).float()
    return (high * 65536.0 + low).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)


class Noise:
    """Gumbel noise keyed by (seed, position); each row has its own seed.

    Every position is computed once: what a round looked ahead is kept for the next one. `greedy` noise is zero.
    """

    SAMPLE, DRAFT, ACCEPT = 0, 1, 2

    def __init__(self, seeds: list[int], vocabulary: int, device: torch.device | str = "cpu", greedy: bool = False):
        self.seeds, self.vocabulary, self.device, self.greedy = seeds, vocabulary, device, greedy
        self._known: list[dict[int, Tensor]] = [{} for _ in seeds]

    def gumbel(self, first: list[int], count: int) -> Float[Tensor, "row position vocab"]:
        """g_t for `count` positions of each row, from `first[row]` on; earlier positions are forgotten."""
        if self.greedy:
            return torch.zeros(len(first), count, 1, device=self.device)
        missing = [
            [t for t in range(start, start + count) if t not in known]
            for start, known in zip(first, self._known, strict=True)
        ]
        need = max(map(len, missing))
        if need:
            fresh = uniforms(
                self.seeds, [(row + [0] * need)[:need] for row in missing], self.vocabulary, self.SAMPLE, self.device
            )
            fresh = fresh.neg_().log1p_().neg_().log_().neg_()
            for row, wanted in enumerate(missing):
                self._known[row].update(zip(wanted, fresh[row]))
        for row, start in enumerate(first):
            self._known[row] = {t: g for t, g in self._known[row].items() if t >= start}
        return torch.stack(
            [torch.stack([known[start + i] for i in range(count)]) for start, known in zip(first, self._known)]
        )

    def fresh(self, row: int, position: int, use: int, count: int = 1) -> Float[Tensor, "count vocab"]:
        """Gumbel noise independent of `gumbel`, for drawing drafts and residuals: `count` independent copies."""
        u = uniforms([self.seeds[row]], [[position]], self.vocabulary * count, use, self.device)
        return u.neg_().log1p_().neg_().log_().neg_().view(count, self.vocabulary)

    def coins(self, row: int, position: int, count: int) -> list[float]:
        """Uniform numbers for accept tests at one position."""
        return uniforms([self.seeds[row]], [[position]], count, self.ACCEPT, "cpu").flatten().tolist()
