"""Seeded mutations of user input, and a judge: each gets an answer or a one-line error, soon and in little memory."""

import copy
import json
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime.errors import Failure

SECONDS, ROOM = 20, 6 << 30  # a case may take, and bytes of address space it may add
DEEP = "@deep@"  # stands for lists in lists, deeper than any parser goes
HOSTILE = [
    None, True, -1, 0, 1, 2.5, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 1e308, float("inf"), float("nan"), "",
    "frog", "a\0b", "../x", "/dev/zero", "x" * 5000, "\ud800", "nan", "{}", [], {}, [1, 2], {"a": 1}, [[]], DEEP,
]  # fmt: skip


class Mutator:
    """Mutations drawn from (kind, case) alone."""

    def __init__(self, kind: str, case: int) -> None:
        self.rng = np.random.default_rng([*kind.encode(), case])

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def choice(self, values: Any) -> Any:
        return values[self.below(len(values))]

    def data(self, data: bytes) -> bytes:
        """Bytes with one to four of them, or slices of them, changed."""
        found = bytearray(data)
        for _ in range(1 + self.below(4)):
            at, to = sorted((self.below(len(found) + 1), self.below(len(found) + 1)))
            change = self.below(6)
            if change == 0:
                del found[at:]
            elif change == 1:
                del found[at : min(to, at + 64)]
            elif change == 2:
                found[at:at] = found[at : min(to, at + 64)]
            elif change == 3:
                found[at:at] = self.rng.bytes(1 + self.below(8))
            else:
                for place in self.rng.integers(max(1, len(found)), size=1 + self.below(8)).tolist() if found else []:
                    found[place] = self.below(256)
        return bytes(found)

    def tree(self, tree: Any) -> Any:
        """A copy of what JSON can hold with one to three of its values changed, removed or added."""
        found = json.loads(json.dumps(tree))
        for _ in range(1 + self.below(3)):
            places = list(_places(found))
            if not places:
                break
            holder, key = self.choice(places)
            change = self.below(8)
            if change == 0:
                del holder[key]
            elif change == 1 and isinstance(holder, dict):
                holder[f"{key}-{self.below(9)}"] = holder[key]
            elif change == 2:
                other, name = self.choice(places)
                holder[key] = json.loads(json.dumps(other[name]))
            else:
                holder[key] = copy.deepcopy(self.choice(HOSTILE))
        return found

    def text(self, tree: Any) -> bytes:
        """A mutated tree as JSON, at times with damaged bytes."""
        found = json.dumps(self.tree(tree)).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()
        return self.data(found) if self.below(8) == 0 else found

    def array(self, array: np.ndarray) -> np.ndarray:
        """Another array in its place: of another shape or type, with other values, or not at all like it."""
        change = self.below(8)
        if change == 0:
            return array[: self.below(len(array) + 1)] if array.ndim else array
        if change == 1:
            return array[..., None]
        if change == 2:
            return array.reshape(-1)
        if change == 3 and array.dtype.kind in "iuf":
            return array.astype(self.choice([np.float32, np.float64, np.int8, np.uint64, np.complex64, "S3", "U3"]))
        if change == 4 and array.size and array.dtype.kind in "iuf":
            found = array.copy()
            found.reshape(-1)[self.below(array.size)] = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
            return found
        if change == 5 and array.dtype.kind == "f":
            return np.full_like(array, self.choice([np.nan, np.inf, 1e30, 0]))
        return np.array(self.choice([0, 10**15, -1, 1.5, "a", [], [[1]], [10**15] * 3, ["x", "y"]]))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


@dataclass
class Verdict:
    """What became of the cases."""

    answers: int = 0
    failures: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def _limits() -> Iterator[None]:
    """A case that takes too long, or too much memory, is an error in it."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def judged(pytestconfig: pytest.Config) -> Callable[[str, Callable[[Mutator], object]], Verdict]:
    """A function (kind, try_case) that runs all cases of a kind and fails with the numbers of the wrong ones."""

    def judge(kind: str, try_case: Callable[[Mutator], object]) -> Verdict:
        found, first, n = Verdict(), pytestconfig.getoption("--fuzz-from"), pytestconfig.getoption("--fuzz-n")
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and PyTorch, about what was made of their files
            for case in range(first, first + n):
                signal.alarm(SECONDS)
                try:
                    try_case(Mutator(kind, case))
                    found.answers += 1
                except Failure as error:
                    found.failures += 1
                    if "\n" in str(error).strip() or not str(error).strip():
                        found.wrong.append(f"case {case}: not one line: {str(error)!r:.200}")
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
                    frames = [frame for frame in frames if "fuzz" not in frame.f_code.co_filename]
                    inside = [f for f in frames if str(f.f_globals.get("__name__")).startswith("cfgdiff")]
                    where = (
                        f"{inside[-1].f_globals['__name__']}.{inside[-1].f_code.co_name}" if inside else "the harness"
                    )
                    found.wrong.append(
                        f"case {case}: {type(error).__name__} in {where}: {str(error).splitlines()[:1]!r:.160}"
                    )
                finally:
                    signal.alarm(0)
        counts = f"{found.answers} answers, {found.failures} refused in one line, {len(found.wrong)} wrong"
        print(f"{kind}: {n} cases, {counts}")
        if found.wrong:
            pytest.fail(f"{len(found.wrong)} of {n} cases of {kind}, as\n" + "\n".join(found.wrong[:12]), pytrace=False)
        return found

    return judge
