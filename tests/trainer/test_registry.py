"""Plugins from files and installed packages are found, listed and used; errors in one are reported in a line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfgdiff import trainer
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer import registry
from cfgdiff.trainer.build import new_run
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.registry import KINDS, all_parts, bound, find, load_plugins, names
from cfgdiff.trainer.weights import load_model

SHAPES = Path(__file__).parents[2] / "examples" / "shapes.py"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(registry, "_loaded", set())
    yield


def plugin(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text("from cfgdiff.trainer.registry import register\n" + text)
    return file


def test_built_in_parts_have_a_summary_and_the_signature_of_their_kind() -> None:
    parts = all_parts()
    assert {part.kind for part in parts} == set(KINDS)
    for part in parts:
        assert part.origin == "cfgdiff" and part.summary.endswith((".", ")"))
        registry._check_signature(part.kind, part.name, part.make)


def test_a_file_brings_parts_with_options() -> None:
    load_plugins((SHAPES,))
    load_plugins((SHAPES,))  # a second time changes nothing
    assert "shapes" in names("data") and find("callback", "norms").origin == str(SHAPES)
    data = bound("data", "shapes", {"count": 50})(Path(), 16)
    assert data.pictures.shape == (45, 3, 16, 16) and data.class_names == ["circle", "square"]
    data.check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no luck')", r"mine.py: cannot be loaded \(RuntimeError: no luck\)"),
        ("import nowhere_to_be_found", r"mine.py: cannot be loaded \(ModuleNotFoundError: .*nowhere_to_be_found"),
        ("def (", r"mine.py: cannot be loaded \(SyntaxError"),
        ("x = 1", "mine.py: registers nothing; expected at least one @register"),
        ("@register('date', 'x')\ndef f(path, image_size): ...", "no kind of part 'date'; .* did you mean 'data'"),
        ("@register('data', 'x')\ndef f(path): ...", r"the data 'x' must take \(path, image_size\), .*found \(path\)"),
        ("@register('data', 'x')\ndef f(path, image_size, depth=3): ...", r"options by keyword only; found"),
        (
            "@register('data', 'x')\ndef f(path, image_size, *, depth): ...",
            "option 'depth' of the data 'x' has no default",
        ),
        (
            "@register('network', 'unet')\ndef f(config, image_shape, num_classes): ...",
            "the network 'unet' is already there, from cfgdiff",
        ),
        ("@register('data', 'shapes')\ndef f(path, image_size): ...", r"'shapes' is already there, from .*shapes.py"),
    ],
)
def test_a_wrong_plugin_is_named_and_leaves_nothing(text: str, message: str, tmp_path: Path) -> None:
    load_plugins((SHAPES,))
    before, good = names("data"), "" if text == "x = 1" else "@register('data', 'good')\ndef g(path, image_size): ...\n"
    with pytest.raises(Failure, match=message):
        load_plugins((plugin(tmp_path, good + text),))
    assert names("data") == before


def test_missing_files_and_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"none.py: no such file"):
        load_plugins((tmp_path / "none.py",))
    with pytest.raises(
        BadInput, match=r"no optimiser 'adam'; choose from adamw, muon, or load a plugin; did you mean 'adamw'"
    ):
        find("optimiser", "adam")
    with pytest.raises(
        BadInput, match=r"the callback 'preview' has no option 'row'; known options: .*did you mean 'rows'"
    ):
        bound("callback", "preview", {"row": 3})
    with pytest.raises(BadInput, match="the data 'npz' has no option 'x'; it has none"):
        bound("data", "npz", {"x": 3})


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        (
            "callback",
            "snapshots",
            {"widths": ["a"]},
            "option 'widths' of the callback 'snapshots': Input should be a valid number, .*found 'a'",
        ),
        (
            "callback",
            "snapshots",
            {"widths": [5]},
            r"option 'widths' of the callback 'snapshots': .* less than or equal to 0\.28, found 5",
        ),
        ("callback", "snapshots", {"widths": []}, "at least 1 item"),
        (
            "callback",
            "snapshots",
            {"snapshots": 10**400},
            "option 'snapshots' of the callback 'snapshots': Input .* less than or equal to 10000",
        ),
        (
            "callback",
            "preview",
            {"rows": 0},
            "option 'rows' of the callback 'preview': Input .* greater than or equal to 1, found 0",
        ),
        (
            "callback",
            "preview",
            {"guidance": float("nan")},
            "option 'guidance' of the callback 'preview': Input should be a finite number",
        ),
        ("callback", "validation", {"seconds": -1}, "option 'seconds' .* greater than or equal to 0"),
        (
            "data",
            "folder",
            {"skip_broken": "perhaps"},
            "option 'skip_broken' of the data 'folder': Input should be a valid boolean",
        ),
        ("data", "shapes", {"count": "many"}, "option 'count' of the data 'shapes': Input should be a valid integer"),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(kind: str, name: str, options: dict, message: str) -> None:
    load_plugins((SHAPES,))
    with pytest.raises(BadInput, match=rf"^(callbacks|data)\..*{message}") as error:
        bound(kind, name, options)
    assert "\n" not in str(error.value)


def test_options_become_what_they_are_annotated_as(tmp_path: Path) -> None:
    snapshots: Any = bound("callback", "snapshots", {"widths": [0.05]})
    assert snapshots.keywords == {"widths": (0.05,)}
    signature = "path, image_size, *, a: 'later' = 1, b=2, c: list[object] = []"
    text = f"@register('data', 'odd')\ndef f({signature}): return a, b, c"
    load_plugins((plugin(tmp_path, text),))
    assert bound("data", "odd", {"a": "x", "b": "y", "c": [3]})(Path(), 8) == ("x", "y", [3])


NETWORK = """
import torch
from torch import nn

class Painter(nn.Module):
    "One convolution, and a colour a class."

    def __init__(self, config, image_shape, num_classes, *, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], image_shape[0], kernel, padding=kernel // 2)
        self.colour = nn.Embedding(num_classes + 1, image_shape[0])

    def forward(self, x, t, label):
        return self.conv(x) + self.colour(label)[:, :, None, None]
"""


def test_a_network_is_one_file_and_one_entry(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "painter.py").write_text(NETWORK)
    monkeypatch.setattr(trainer, "__path__", [*trainer.__path__, str(tmp_path / "parts")])
    monkeypatch.setitem(registry.BUILT_IN, ("network", "painter"), "painter:Painter")
    tree = tiny_tree | {"network": {"name": "painter", "options": {"kernel": 5}}, "optimiser": {"name": "adamw"}}
    run = new_run(make_config(tree), load_data(picture_folder, 16), tmp_path / "run", "cfgdiff train")
    assert train(run)
    model = load_model(tmp_path / "run")
    assert type(model.network).__name__ == "Painter" and model.network.conv.kernel_size == (5, 5)
    assert ("network", "painter", "One convolution, and a colour a class.") in [
        (p.kind, p.name, p.summary) for p in all_parts()
    ]


def installed(folder: Path, text: str) -> dict[str, str]:
    """An installed distribution `shapes-for-cfgdiff`, as pip leaves it behind, and the environment that sees it."""
    (folder / "shapes_for_cfgdiff.py").write_text(text)
    info = folder / "shapes_for_cfgdiff-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes-for-cfgdiff\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[cfgdiff.plugins]\nshapes = shapes_for_cfgdiff\n")
    return os.environ | {"PYTHONPATH": str(folder)}


def run_plugins(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from cfgdiff.cli.main import main; main(['plugins'])"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    found = run_plugins(installed(tmp_path, SHAPES.read_text()))
    assert found.returncode == 0, found.stderr
    rows = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    assert ["data", "cifar10"] in [row[:2] for row in rows]
    shapes = next(row for row in rows if row[:2] == ["data", "shapes"])
    assert shapes[2].startswith("package shapes-for-cfgdiff 1.2 (shapes)") and "Circles and squares" in shapes[2]


def test_a_broken_installed_package_is_named(tmp_path: Path) -> None:
    found = run_plugins(installed(tmp_path, "1 / 0"))
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert found.stderr.startswith(
        "Error: package shapes-for-cfgdiff 1.2 (shapes): cannot be loaded (ZeroDivisionError"
    )
