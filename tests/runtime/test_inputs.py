"""What every engine takes, and what it says to the rest. `test_engine_ort.py` asks the same of an engine."""

import numpy as np
import pytest

from cfgdiff.runtime.errors import BadInput
from cfgdiff.runtime.inputs import check_inputs


def given(**changes: np.ndarray) -> dict[str, np.ndarray]:
    good = {"sample": np.zeros((2, 3, 4, 4), np.float32), "timestep": np.ones(2, np.float32),
            "class_label": np.arange(2), "guidance": np.ones(1, np.float32)}  # fmt: skip
    return good | changes


def test_good_inputs_come_back_by_name() -> None:
    inputs = given()
    assert check_inputs(**inputs, image_shape=(3, 4, 4)) == inputs


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"sample": np.zeros((2, 3, 4, 5), np.float32)},
            r"Expected float32 \(2, 3, 4, 4\), got float32 \(2, 3, 4, 5\) for input: sample",
        ),
        ({"timestep": np.zeros(2)}, r"Expected float32 \(2,\), got float64 \(2,\) for input: timestep"),
        ({"class_label": np.zeros(2, np.int32)}, r"Expected int64 \(2,\), got int32 \(2,\) for input: class_label"),
        (
            {"guidance": np.ones((1, 1), np.float32)},
            r"Expected float32 \(1,\), got float32 \(1, 1\) for input: guidance",
        ),
        ({"guidance": np.ones(3, np.float32)}, "Expected at most 2 rows of guidance, got 3"),
    ],
)
def test_others_are_named(changes: dict[str, np.ndarray], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        check_inputs(**given(**changes), image_shape=(3, 4, 4))
