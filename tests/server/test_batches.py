"""Rows of many requests in one call and back, and the size of call that an engine computes fastest."""

import dataclasses

import numpy as np
import pytest

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.server.batches import Rows, best_rows, divided, joined, mixes, warm_up


def request(b: int, g: int, start: int) -> Rows:
    """Rows that are numbered from `start` on, in every input."""
    numbers = np.arange(start, start + b)
    sample = np.broadcast_to(numbers.reshape(-1, 1, 1, 1), (b, 3, 2, 2)).astype(np.float32)
    return Rows(sample, numbers.astype(np.float32), numbers, numbers[:g].astype(np.float32))


def test_guided_rows_come_first_and_each_answer_returns_to_its_request() -> None:
    requests = [request(1, 0, 0), request(1, 1, 10), request(2, 0, 20), request(3, 2, 30), request(1, 1, 40)]
    together = joined(requests)
    assert together.class_label.tolist() == [10, 30, 31, 40, 0, 20, 21, 32]
    assert together.guidance.tolist() == [10, 30, 31, 40] and together.guidance.dtype == np.float32
    for array in (together.timestep, together.sample[:, 0, 0, 0]):
        np.testing.assert_array_equal(array, together.class_label)
    for answer, rows in zip(divided(2 * together.sample, requests), requests, strict=True):
        np.testing.assert_array_equal(answer, 2 * rows.sample)


class Timed:
    """Takes `call` seconds a call, `row` a row of the network, and `beyond` more for each above 16; its first calls of
    a size take a second more."""

    name, precision = "timed", "float32"

    def __init__(self, call: float, row: float, beyond: float = 0.0, max_batch: int = 4096) -> None:
        self.now, self.costs, self.max_batch, self.sizes = 0.0, (call, row, beyond), max_batch, list[tuple[int, int]]()

    def clock(self) -> float:
        return self.now

    def predict(self, sample: np.ndarray, t: np.ndarray, label: np.ndarray, w: np.ndarray) -> np.ndarray:
        assert sample.dtype == t.dtype == w.dtype == np.float32 and label.dtype == np.int64 and len(w) <= len(sample)
        (call, row, beyond), rows = self.costs, len(sample) + len(w)
        self.now += call + row * rows + beyond * max(0, rows - 16)
        self.now += 0.0 if (len(sample), len(w)) in self.sizes else 1.0
        self.sizes.append((len(sample), len(w)))
        return sample

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("costs", "best"),
    [
        ({"call": 1e-3, "row": 1e-3}, 32),  # 97 % of the rate at 64 and at 128, in less time
        ({"call": 0.0, "row": 1e-3}, 1),  # as fast alone
        ({"call": 4e-3, "row": 1e-3, "beyond": 1e-3}, 16),  # 16 rows are faster than 64
    ],
)
def test_the_best_call_is_the_smallest_of_the_fast_ones(packaged: Bundle, costs: dict, best: int) -> None:
    engine = Timed(**costs)
    assert best_rows(packaged, engine, engine.clock) == best
    assert list(dict.fromkeys(b for b, _ in engine.sizes))[:6] == [1, 2, 4, 8, 16, 32]
    assert engine.sizes[:6] == [*[(1, 0)] * 2, *[(1, 1)] * 2, *[(2, 2)] * 2]  # one row, and the two of a guided picture


def test_another_program_s_load_does_not_decide(packaged: Bundle) -> None:
    """Three of four calls take five times as long."""

    class Disturbed(Timed):
        def predict(self, *inputs: np.ndarray) -> np.ndarray:
            before = self.now
            answer = super().predict(*inputs)
            self.now += 4 * (self.now - before) * (len(self.sizes) % 4 != 1)
            return answer

    engine = Disturbed(4e-3, 1e-3, 1e-3)
    assert best_rows(packaged, engine, engine.clock) == 16


def test_measuring_ends_at_the_engine_s_limit_and_in_time(packaged: Bundle) -> None:
    small, slow = Timed(1e-3, 1e-3, max_batch=8), Timed(0.019, 0.019)
    best_rows(packaged, small, small.clock)
    assert max(small.sizes) == (8, 8)
    assert best_rows(packaged, slow, slow.clock) == 8  # a call of 8 rows takes longer than a tenth of a second
    assert max(slow.sizes) == (4, 4)


def test_where_guidance_is_an_input_rows_are_pictures(packaged: Bundle) -> None:
    inside, engine = dataclasses.replace(packaged, guidance_input=(1.0, 8.0)), Timed(1.0, 0.01)
    assert best_rows(inside, engine, engine.clock) == 1  # a call takes a second, so one size is enough
    assert list(dict.fromkeys(engine.sizes)) == [(1, 1)]


def test_shapes_are_used_once_before_somebody_waits_for_them(packaged: Bundle) -> None:
    engine = Timed(1e-3, 1e-3, max_batch=6)
    warm_up(packaged, engine, 8, mixed=True)
    assert engine.sizes == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (4, 0), (4, 2), (4, 4)]  # of at most 8 rows
    engine.sizes.clear()
    warm_up(packaged, engine, 8, mixed=False)
    assert engine.sizes == [(1, 0), (1, 1), (2, 0), (2, 2), (4, 0), (4, 4)]


def test_kinds_share_calls_only_where_they_cost_no_more(packaged: Bundle) -> None:
    class Apart(Timed):
        """Guided rows wait for the others."""

        def predict(self, *inputs: np.ndarray) -> np.ndarray:
            b, g = len(inputs[0]), len(inputs[3])
            self.now += 1e-3 * (0 < g < b) * min(g, b - g)
            return super().predict(*inputs)

    even, apart, inside = Timed(1e-3, 1e-3), Apart(1e-3, 1e-3), dataclasses.replace(packaged, guidance_input=(1.0, 8.0))
    assert mixes(packaged, even, 16, even.clock) and not mixes(packaged, apart, 16, apart.clock)
    assert {b + g for b, g in apart.sizes} == {16} and len({*apart.sizes}) == 2
    small = Apart(1e-3, 1e-3, max_batch=8)
    assert not mixes(packaged, small, 16, small.clock) and max(b for b, _ in small.sizes) == 8
    assert mixes(inside, apart, 16, apart.clock)  # there all rows are of a kind
