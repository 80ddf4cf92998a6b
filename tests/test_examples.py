"""The examples run: the tour of the library, a model of own pictures, and JavaScript with a stand-in for its engine."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime import Bundle

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "javascript"
# Every row's clean picture is its label / 10 + w / 100 everywhere; that is v = (alpha x - x0) / sigma.
STAND_IN = """
const table = %s;
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data: data.slice(), dims }); } }
const create = async (path) => ({ run: async ({ sample, timestep, class_label: label, guidance }) => {
  const right = path.endsWith("model.onnx") && label.type === "int64" && guidance.dims[0] === guidance.data.length;
  if (!right) throw new Error("wrong inputs");
  const size = sample.dims[1] * sample.dims[2] * sample.dims[3];
  const data = sample.data.map((x, k) => {
    const [b, bar] = [Math.floor(k / size), table[timestep.data[Math.floor(k / size)]]];
    return (Math.sqrt(bar) * x - (Number(label.data[b]) / 10 + (guidance.data[b] ?? 0) / 100)) / Math.sqrt(1 - bar);
  });
  return { prediction: { data } };
} });
export const InferenceSession = { create };
"""


@pytest.fixture
def folder(packaged: Bundle, tmp_path: Path) -> Path:
    """The example with the stand-in for onnxruntime-node."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    for name in ("draw.mjs", "package.json"):
        shutil.copy(EXAMPLE / name, tmp_path)
    module = tmp_path / "node_modules" / "onnxruntime-node"
    module.mkdir(parents=True)
    table = json.dumps({str(t): float(packaged.schedule.alpha_bar(t)) for t in (1000, 750, 500, 250)})
    (module / "index.mjs").write_text(STAND_IN % table)
    (module / "package.json").write_text('{"name": "onnxruntime-node", "exports": "./index.mjs"}')
    return tmp_path


def draw(folder: Path, bundle: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    command = ["node", "draw.mjs", "--bundle", str(bundle), "--steps", "4", "--out", "x.png", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(("guidance", "share"), [("2", 0.02), ("1", 0.0)])
def test_the_javascript_example_samples_and_writes_a_png(
    folder: Path, packaged: Bundle, guidance: str, share: float
) -> None:
    done = draw(folder, packaged.path, "--class", "cat,ship", "--n", "3", "--guidance", guidance)
    assert done.returncode == 0 and done.stdout == "3 pictures in x.png\n", done.stderr
    with Image.open(folder / "x.png") as image:
        pixels = np.asarray(image)
    expected = np.zeros((64, 64, 3), np.uint8)
    for i, label in enumerate((3, 8, 3)):
        value = (packaged.schedule.data_std * (label / 10 + share) + 1) * 127.5
        expected[i // 2 * 32 :, i % 2 * 32 :][:32, :32] = round(value)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_an_unknown_class_is_one_line(folder: Path, packaged: Bundle) -> None:
    done = draw(folder, packaged.path, "--class", "frgo")
    assert (
        done.returncode == 1
        and "choose from airplane, automobile" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert not (folder / "x.png").exists()


def test_the_tour_of_the_library_draws_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("library_tour", EXAMPLES / "library_tour.py")
    assert spec is not None and spec.loader is not None
    tour = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tour)
    tour.main(tmp_path)
    columns = {"guidance": 4, "frogs": 4, "cat_to_dog": 5, "frog_to_horse": 3, "denoising": 5}
    for name, count in columns.items():
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (32 * count, 32), name
    with Image.open(tmp_path / "frog_to_horse.png") as image:
        frog, _, masked = np.split(np.asarray(image), 3, axis=1)
    assert (frog[:, :16] == masked[:, :16]).all() and (frog[:, 16:] != masked[:, 16:]).any()
    out = capsys.readouterr().out
    assert re.search(r"picture 3 alone: differs by [01] grey levels", out) and "did you mean 'frog'?" in out


def test_own_pictures_become_a_model_as_the_page_says(tmp_path: Path) -> None:
    """Its commands in order, but with a small network, for a second, and without TensorRT."""
    pytest.importorskip("torch", reason="needs the train extra: pip install 'cfgdiff[train]'")
    rng, page = np.random.default_rng(0), (EXAMPLES / "own_pictures.md").read_text()
    for name in ("apple", "pear"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i:04d}.png")
    commands = re.findall(r"^    ((?:cfgdiff|cfgdiff-run) .+)$", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        short = re.sub(r"--max-minutes (\d+)", lambda m: f"--max-minutes {int(m[1]) / 480}", command)
        name, *args = shlex.split(short.replace("cifar10-small", "smoke"))
        program = "run" if name == "cfgdiff-run" else "main"
        args += ["--no-tensorrt"] if args[0] == "export" else []
        code = f"from cfgdiff.cli.{program} import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "seen.png").is_file() and (tmp_path / "mine.png").is_file()
    assert json.loads((tmp_path / "exported" / "mine" / "bundle.json").read_text())["class_names"] == ["apple", "pear"]
