"""docs/sizes.md, as a reader with a folder of 128x128 pictures follows it: three stages, on a CPU."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cfgdiff.cli.main import main as cfgdiff
from cfgdiff.cli.run import main as run
from cfgdiff.runtime import load_bundle

pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
PAGE = (Path(__file__).parents[1] / "docs" / "sizes.md").read_text()
MAINS = {"cfgdiff": cfgdiff, "cfgdiff-run": run}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Discs and squares in random colours and places, 128x128, 30 of each."""
    rng = np.random.default_rng(0)
    for name in ("disc", "square"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            image = Image.new("RGB", (128, 128), tuple(rng.integers(0, 80, 3).tolist()))
            x, y, size = rng.integers(8, 56, 3).tolist()
            pen = ImageDraw.Draw(image)
            shape = pen.ellipse if name == "disc" else pen.rectangle
            shape((x, y, x + size, y + size), fill=tuple(rng.integers(120, 256, 3).tolist()))
            image.save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_a_cascade_of_ones_own_pictures_from_the_page_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"These commands take .*?```\n(.*?)```", PAGE, re.DOTALL)
    assert block
    printed = dict[str, str]()
    for line in block[1].strip().splitlines():
        name, *words = shlex.split(line.replace("PICTURES", str(pictures)))
        with pytest.raises(SystemExit) as stopped:
            MAINS[name](words)
        out, err = capsys.readouterr()
        assert stopped.value.code == 0, f"{line}: {err}"
        printed[line] = out + err
    bundle = load_bundle("exported/large")
    assert [model.image_shape[1] for model in bundle.models] == [32, 64, 128]
    assert all(v.certificate and v.certificate.passed for m in bundle.models for v in m.variants.values())
    with Image.open("large.png") as sheet:
        assert sheet.size[0] > 2 * 128
    report = json.loads(next(text for line, text in printed.items() if "--json" in line).splitlines()[0])
    assert [entry["size"] for entry in report["stages"]] == [32, 64] and report["gmac"] > 0
    with Image.open("middle/0003.png") as picture:
        assert picture.size == (64, 64)
    assert "the same pixels" in [*printed.values()][-1]
