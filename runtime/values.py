"""The values of bundle.json, checked. Each function returns its value, or raises ValueError or TypeError."""

from typing import Any

from .fitted import parse_interval
from .model import Condition
from .upscale import FACTORS

MOST_VALUES = 2**26  # of a picture


def text(value: Any) -> str:
    """A line of text."""
    if not (isinstance(value, str) and value and not any(c < " " for c in value)):
        raise ValueError("not a line of text")
    return value


def names(value: Any) -> list[str]:
    """A list of one name or more."""
    if not (isinstance(value, list) and value):
        raise ValueError("no names")
    return [text(name) for name in value]


def integer(value: Any, most: int) -> int:
    """A whole number from 1 to `most`."""
    if not (isinstance(value, int) and 1 <= value <= most):
        raise ValueError(f"not an integer from 1 to {most}")
    return value


def finite(value: Any) -> float:
    """A finite number."""
    if not -float("inf") < (number := float(value)) < float("inf"):
        raise ValueError("not a finite number")
    return number


def interval(value: Any) -> tuple[float, float] | None:
    """Two numbers, or null."""
    interval = parse_interval(value)
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError("not an interval")
    return interval


def condition(value: Any, tree: dict[str, Any]) -> Condition:
    """What a super-resolution stage takes; `tree` is its bundle.json."""
    known = Condition(value["factor"], finite(value["noise"]), finite(value["most"]), integer(value["stage"], 16))
    if known.factor not in FACTORS or any(side % known.factor for side in tree["image_shape"][1:]):
        raise ValueError("not a factor of the picture's sides")
    if not 0 <= known.noise <= known.most <= tree["schedule"]["T"]:
        raise ValueError("noise beyond the schedule")
    return known


def shape(value: Any) -> tuple[int, int, int]:
    """(C, H, W)."""
    c, h, w = (integer(v, MOST_VALUES) for v in value)
    integer(c * h * w, MOST_VALUES)
    return c, h, w
