"""How a sentence ends that does not end by itself: in silence, or repeating itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StallDetector:
    """Notices speech that has stalled: codec tokens of a whole `window` that are all in `silence`, or that repeat
    themselves.
    """

    window: int
    silence: frozenset[int]

    def reason(self, tokens: list[int]) -> str:
        """ "silence" if the last window is silent, "loop" if it says one thing three times or more, else ""."""
        tail = tokens[-self.window :]
        if len(tail) < self.window:
            return ""
        if self.silence.issuperset(tail):
            return "silence"
        periods = (period for period in range(1, self.window // 3 + 1) if tail[-1 - period] == tail[-1])
        return "loop" if any(tail[period:] == tail[:-period] for period in periods) else ""
