"""The model card: all that bundle.json and the sidecars say, with pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cfgdiff.export.card import card
from cfgdiff.runtime import Bundle, load_bundle
from cfgdiff.runtime.errors import Failure


def test_the_card_is_the_description_with_a_grid(small_bundle: Bundle) -> None:
    text, shown = (small_bundle.path / "README.md").read_text(), card(small_bundle)
    heading, rest = shown.split("\n", 1)
    assert (
        text.startswith(heading) and text.endswith(rest + "\n") and "![Samples, a column a class](samples.png)" in text
    )
    assert (
        "pictures_seen: 0" in text
        and "model-int8.onnx" in text
        and "passed, 16 pictures" in text
        and "ddim, 3 steps" in text
    )
    with Image.open(small_bundle.path / "samples.png") as grid:
        assert grid.size == (3 * 18 + 2, 8 * 18 + 2)


def test_it_says_how_to_draw_with_a_graph_alone(small_bundle: Bundle) -> None:
    text = card(small_bundle)
    assert "- class_label: class of each row (B,), 0 .. 2; 3 is the null class" in text and "0 <= G <= B" in text
    assert (
        "x0 = alpha * x - sigma * P, eps = sigma * x + alpha * P" in text
        and "round((clip(x * 1, -1, 1) + 1) * 127.5)" in text
    )
    assert "the reference; its rows passed" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(evaluation={"protocol": 3}),
        lambda t: t.update(evaluation=t["evaluation"] | {"called": {"frechet": "FID"}, "quality": {}}),
    ],
)
def test_what_cannot_be_shown_is_one_line(edited: Callable[[Callable], Path], change: Callable) -> None:
    with pytest.raises(Failure, match=r"bundle\.json: provenance or evaluation is not as expected") as error:
        card(load_bundle(edited(change)))
    assert "\n" not in str(error.value)
