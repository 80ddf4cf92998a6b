"""The report of `cfgdiff bench serve`."""

import statistics
from collections.abc import Mapping, Sequence

from cfgdiff.export.markdown import table

from .serving import OURS, WHOLE, Turn

HEADS = ("server", "pictures/s", "of generate's", "median s", "95th percentile s", "95th, times ours")


def serving_table(turns: Mapping[str, Sequence[Turn]]) -> str:
    """Markdown of medians over the rounds, with the least and the most of the ratios, each within its round."""
    rows = []
    for name, given in turns.items():
        speed = f"{statistics.median(turn.speed for turn in given):.0f}"
        share = _ratio([turn.speed / whole.speed for turn, whole in zip(given, turns[WHOLE], strict=True)], ".2f")
        if name == WHOLE:
            rows.append([name, speed, "", "", "", ""])
            continue
        middle = statistics.median(second for turn in given for second in turn.single)
        late = statistics.median(turn.late for turn in given)
        times = [turn.late / ours.late for turn, ours in zip(given, turns[OURS], strict=True)]
        rows.append([name, speed, share, f"{middle:.2f}", f"{late:.2f}", "" if name == OURS else _ratio(times, ".1f")])
    return table(HEADS, rows)


def _ratio(ratios: Sequence[float], form: str) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(ratios):{form}} ({min(ratios):{form}} .. {max(ratios):{form}})"
