"""Timing in turns: every benchmark uses it, so that a machine whose speed drifts slows all cases alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PAUSE = 0.02  # seconds between turns: threads of the previous case spin for a while


@dataclass(frozen=True)
class Case:
    """A timed case: seconds of each round, and the pictures drawn in each."""

    name: str
    pictures: int
    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """The least and the largest, in milliseconds."""
        return f"{1e3 * min(self.seconds):.1f} .. {1e3 * max(self.seconds):.1f}"

    def ratios(self, other: "Case") -> list[float]:
        """How many times as fast as the other, in pictures a second, in every round."""
        return [b / a * self.pictures / other.pictures for a, b in zip(self.seconds, other.seconds, strict=True)]

    def times(self, other: "Case") -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios(other))


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, pictures: int = 1, warm: bool = False
) -> dict[str, Case]:
    """Time all cases in turns, `rounds` times, after one unmeasured turn each where they are not `warm`."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for measured in [*([] if warm else [False]), *[True] * rounds]:
        for name, case in cases.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            case()
            if measured:
                seconds[name].append(time.perf_counter() - started)
    return {name: Case(name, pictures, rounds_of) for name, rounds_of in seconds.items()}
