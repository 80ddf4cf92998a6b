"""One thing is changed at a time, and what bounds it follows from the shares of the peak."""

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")

from cfgdiff.benchmarks.scaling import bound, of_size, scaling_rows
from cfgdiff.runtime import Bundle


def test_one_thing_is_changed_at_a_time(small_bundle: Bundle, sleeper: Any) -> None:
    engine = sleeper(0.0)
    engine.max_batch = 64
    rows = scaling_rows(engine, small_bundle, 1, [], 1, {"float32": 1e12})
    assert [(row["varied"], row["value"]) for row in rows] == [
        ("pictures", 4), ("pictures", 16), ("pictures", 32), ("batch", 1), ("batch", 4), ("batch", 16),
        ("evaluations", 2), ("evaluations", 4), ("evaluations", 8),
    ]  # fmt: skip
    expected = [
        (4, 4, 1),
        (16, 4, 1),
        (16, 4, 2),
        (1, 4, 16),
        (4, 4, 4),
        (16, 4, 1),
        (16, 2, 1),
        (16, 4, 1),
        (16, 8, 1),
    ]
    assert [b for b, _ in engine.calls] == [
        batch for batch, steps, batches in expected for _ in range(2 * steps * batches)
    ]
    assert all(row["ms"] > 0 and row["of peak"] > 0 for row in rows)
    engine.precision = "bfloat16"  # whose product was not measured
    assert all(row["of peak"] is None for row in scaling_rows(engine, small_bundle, 1, [], 1, {"float32": 1e12}))


def test_untrained_networks_of_other_sizes_run() -> None:
    with of_size(16) as bundle:
        assert bundle.image_shape == (3, 16, 16)
        from cfgdiff.runtime import generate, open_engine

        ((_, pictures),) = generate(open_engine(bundle, "cpu", threads=1), bundle, [0, 1], 1)
        assert pictures.shape == (2, 16, 16, 3)
        folder = bundle.path
    assert not folder.exists()


def test_what_bounds_a_row() -> None:
    assert bound({"of peak": None}, 0.9) == "-"
    assert bound({"of peak": 0.6}, 0.9) == "compute"
    assert bound({"of peak": 0.2}, 0.4) == "overhead"
    assert bound({"of peak": 0.3}, 0.3) == "memory"
