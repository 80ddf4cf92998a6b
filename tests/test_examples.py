"""The examples in other languages run, with a stand-in for their engine that answers by the Python schedule."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.runtime import Bundle

EXAMPLE = Path(__file__).parents[1] / "examples" / "javascript"
# Every row's clean picture is its label / 10 + w / 100 everywhere; the answer that implies it is v = (alpha x - x0) / sigma.
STAND_IN = """
const table = %s;
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data: data.slice(), dims }); } }
export const InferenceSession = { create: async (path) => ({ run: async ({ sample, timestep, class_label: label, guidance }) => {
  if (!path.endsWith("model.onnx") || label.type !== "int64" || guidance.dims[0] !== guidance.data.length) throw new Error("wrong inputs");
  const size = sample.dims[1] * sample.dims[2] * sample.dims[3];
  const data = sample.data.map((x, k) => {
    const [b, bar] = [Math.floor(k / size), table[timestep.data[Math.floor(k / size)]]];
    return (Math.sqrt(bar) * x - (Number(label.data[b]) / 10 + (guidance.data[b] ?? 0) / 100)) / Math.sqrt(1 - bar);
  });
  return { prediction: { data } };
} }) };
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
def test_the_javascript_example_samples_and_writes_a_png(folder: Path, packaged: Bundle, guidance: str, share: float) -> None:
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
    assert done.returncode == 1 and "choose from airplane, automobile" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (folder / "x.png").exists()
