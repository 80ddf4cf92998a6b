"""Figures hold the pictures and numbers that they are given, and are the same every time."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cfgdiff.benchmarks.evaluate import Copies
from cfgdiff.benchmarks.figures import histogram, interpolations, neighbour_rows, png, sweep_plot
from cfgdiff.benchmarks.neighbours import Neighbours
from cfgdiff.runtime import Bundle, open_engine

RNG = np.random.default_rng(0)


def opened(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_grid_is_whole_and_enlarged() -> None:
    pictures = RNG.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    sheet = opened(png(pictures, columns=3, enlarged=2))
    assert sheet.shape == (12, 3 * 10 + 2, 3)
    for i in range(3):
        np.testing.assert_array_equal(sheet[2:10:2, 2 + 10 * i : 10 + 10 * i : 2], pictures[i])


def neighbours() -> Neighbours:
    distances = np.array([[0.3, 0.4], [0.1, 0.9], [0.2, 0.5]])
    return Neighbours(
        distances,
        np.array([[0, 1], [2, 0], [1, 2]]),
        np.array([[False, False], [True, False], [False, False]]),
        np.array([0.5, 0.9, 0.5]),
    )


def test_the_nearest_come_first_with_their_neighbours_as_they_match() -> None:
    pictures, training = RNG.integers(0, 256, (2, 3, 4, 4, 3), dtype=np.uint8)
    rows = neighbour_rows(Copies(pictures, neighbours(), None), training, count=2)
    assert [row["number"] for row in rows] == [1, 2] and rows[0]["distances"] == ["0.100", "0.900"]
    assert [row["copied"] for row in rows] == [True, False]
    sheet = opened(rows[0]["picture"])[2:10:2]
    np.testing.assert_array_equal(sheet[:, 2:10:2], pictures[1])
    np.testing.assert_array_equal(sheet[:, 12:20:2], training[2][:, ::-1])


def test_plots_are_svgs_that_say_what_they_show() -> None:
    pytest.importorskip("matplotlib", reason="needs the train extra: pip install 'cfgdiff[train]'")
    cells = [
        ("guidance", 1.0, None, 10, 0.5),
        ("guidance", 3.0, None, 10, 0.9),
        ("guidance", 3.0, (0.3, 10.0), 10, 0.8),
        ("evaluations", 4.0, None, 4, 0.9),
    ]
    keys = ("varied", "guidance", "interval", "evaluations", "accuracy")
    rows = [dict(zip(keys, cell, strict=True)) | {"frechet": 3.0 / cell[1]} for cell in cells]
    for make in (
        lambda: histogram(neighbours(), neighbours()),
        lambda: sweep_plot(rows, "guidance"),
        lambda: sweep_plot([row | {"accuracy": None} for row in rows], "evaluations"),
    ):
        text = make()
        assert ElementTree.fromstring(text).tag.endswith("svg") and text == make()


def test_a_row_of_an_interpolation_goes_from_one_latent_to_the_other(small_bundle: Bundle) -> None:
    frames = interpolations(open_engine(small_bundle, "cpu", threads=1), small_bundle, ["a", "b"], frames=5).astype(int)
    assert frames.shape == (10, 16, 16, 3)
    first = frames[:5]
    steps = np.abs(np.diff(first, axis=0)).mean((1, 2, 3))
    assert steps.max() < np.abs(first[-1] - first[0]).mean() and not (frames[0] == frames[5]).all()
