"""Positional Gumbel noise: sampling as a function of (seed, position, token)."""

import torch
from jaxtyping import Float
from torch import Tensor

# Noise is computed for so many positions ahead, while they have no more numbers than this.
AHEAD, AHEAD_NUMBERS = 8, 2**15

_GOLDEN, _M1, _M2 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def mix(x: Tensor) -> Tensor:
    """The lowbias32 integer hash, in place on int32 (multiplication wraps, shifts are made logical)."""
    shifted = torch.empty_like(x)
    for bits, factor in ((16, _M1), (15, _M2), (16, None)):
        torch.bitwise_right_shift(x, bits, out=shifted)
        x ^= shifted.bitwise_and_((1 << (32 - bits)) - 1)
        if factor is not None:
            x *= _signed(factor)
    return x


def _words(seed: int, position: int, use: int) -> tuple[int, int]:
    """Two 32-bit words from (seed, position, use), by splitmix64."""
    z = seed * 0x9E3779B97F4A7C15 + position * 0xD1342543DE82EF95 + use * 0xDA942042E4DD58B5 + 0x632BE59BD9B4E019
    z &= 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


def uniforms(
    seeds: list[int], positions: list[list[int]], vocabulary: int, use: int, device: torch.device | str
) -> Float[Tensor, "row position vocab"]:
    """Uniform numbers in (0, 1) from (seed, position, token, use): the same on every device, in any order or batch.

    Small values keep their full relative precision (32 random bits), so that Gumbel maxima over large vocabularies do
    not tie.
    """
    words = torch.tensor(
        [[_words(seed, position, use) for position in row] for seed, row in zip(seeds, positions, strict=True)],
        dtype=torch.int64,
    ).view(len(seeds), -1, 2)
    words = (words - ((words >> 31) << 32)).to(torch.int32).to(device)
    x = torch.arange(vocabulary, dtype=torch.int32, device=device) * _signed(_GOLDEN)
    x = mix(x + words[..., :1])
    x = mix(x.bitwise_xor_(words[..., 1:]))
    low = (x & 0xFFFF).float().add_(0.5)
    high = x.bitwise_right_shift_(16).bitwise_and_(0xFFFF).float()
    return high.mul_(65536.0).add_(low).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)


def to_gumbel(uniform: Tensor) -> Tensor:
    """-log(-log(1 - u)), in place: Gumbel(0, 1) numbers, the largest of which are the most precise."""
    return uniform.neg_().log1p_().neg_().log_().neg_()


class Noise:
    """Gumbel noise that is a function of (seed, position); each row has its own seed.

    Every position is computed once: what a round looked ahead is kept for the next one. `greedy` noise is zero.
    """

    SAMPLE, DRAFT, ACCEPT = 0, 1, 2

    def __init__(
        self, seeds: list[int], vocabulary: int, device: torch.device | str = "cpu", greedy: bool = False
    ) -> None:
        self.seeds, self.vocabulary, self.device, self.greedy = seeds, vocabulary, device, greedy
        self._computed: list[dict[int, Tensor]] = [{} for _ in seeds]

    def gumbel(self, first: list[int], count: int) -> Float[Tensor, "row position vocab"]:
        """g_t for `count` positions of each row, from `first[row]` on; earlier positions are forgotten."""
        if self.greedy:
            return torch.zeros(len(first), count, 1, device=self.device)
        known = zip(first, self._computed, strict=True)
        if any(position not in computed for start, computed in known for position in range(start, start + count)):
            # Small vocabularies cost calls, and not arithmetic.
            end = count + min(AHEAD, AHEAD_NUMBERS // self.vocabulary)
            missing = [
                [position for position in range(start, start + end) if position not in computed]
                for start, computed in zip(first, self._computed)
            ]
            most = max(map(len, missing))
            padded = [(row + [0] * most)[:most] for row in missing]
            fresh = to_gumbel(uniforms(self.seeds, padded, self.vocabulary, self.SAMPLE, self.device))
            for row, positions in enumerate(missing):
                self._computed[row].update(zip(positions, fresh[row]))
        for row, start in enumerate(first):
            self._computed[row] = {position: g for position, g in self._computed[row].items() if position >= start}
        every = [computed[start + i] for start, computed in zip(first, self._computed) for i in range(count)]
        return torch.stack(every).view(len(first), count, self.vocabulary)

    def fresh(self, positions: list[list[int]], use: int, copies: int = 1) -> Float[Tensor, "row position copy vocab"]:
        """Gumbel noise independent of `gumbel`, for sampling drafts and residuals: independent copies at each
        position.
        """
        u = uniforms(self.seeds, positions, self.vocabulary * copies, use, self.device)
        return to_gumbel(u).unflatten(2, (copies, self.vocabulary))

    def coins(self, positions: list[list[int]], count: int) -> Float[Tensor, "row position count"]:
        """Uniform numbers for the accept tests at each position."""
        return uniforms(self.seeds, positions, count, self.ACCEPT, self.device)
