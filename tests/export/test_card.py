"""The model card: all that bundle.json and the sidecars say, with pictures."""

from PIL import Image

from cfgdiff.export.card import card
from cfgdiff.runtime import Bundle


def test_the_card_is_the_description_with_a_grid(small_bundle: Bundle) -> None:
    text, shown = (small_bundle.path / "README.md").read_text(), card(small_bundle)
    heading, rest = shown.split("\n", 1)
    assert text.startswith(heading) and text.endswith(rest + "\n") and "![Samples, a column a class](samples.png)" in text
    assert "pictures_seen: 0" in text and "model-int8.onnx" in text and "passed, 16 pictures" in text and "ddim, 3 steps" in text
    with Image.open(small_bundle.path / "samples.png") as grid:
        assert grid.size == (3 * 18 + 2, 8 * 18 + 2)
