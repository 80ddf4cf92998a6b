"""What is installed: every folder, no torch, and arrows between folders that only point down."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read with tomllib (Python 3.11) or tomli")

ROOT = Path(__file__).parents[1]
# These name commands to run, of this program or of another, with their flags.
WITH_COMMANDS = {
    "bundle.py", "choose.py", "cuda.py", "engine_openvino.py", "engine_ort.py", "engine_tensorrt.py", "files.py",
    "sidecar.py", "survey.py",
}  # fmt: skip
LAYERS = ["runtime", "trainer", "export", "benchmarks", "cli"]


def test_every_folder_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py") if p.parent.name != "tests"}
    below = {".".join(p.parent.relative_to(ROOT).parts) for name in folders for p in (ROOT / name).rglob("__init__.py")}
    assert set(setuptools["packages"]) == {f"cfgdiff.{name}" for name in below} and "runtime.server" in below
    assert setuptools["package-dir"] == {f"cfgdiff.{name}": name for name in folders}


def test_every_file_of_data_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for name, folder in setuptools["package-dir"].items():
        held = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        listed = {
            path for pattern in setuptools["package-data"].get(name, []) for path in (ROOT / folder).glob(pattern)
        }
        assert held == listed, name


def imported(path: Path) -> set[str]:
    """The cfgdiff folders and other packages that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] if name.startswith("cfgdiff.") else name.split(".")[0] for name in names}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | ({"torch"} if layer == "runtime" else set())
    wrong = {path.name: found for path in (ROOT / layer).rglob("*.py") if (found := imported(path) & above)}
    assert not wrong


def test_the_runtime_does_not_know_the_server() -> None:
    """By any import: a file outside of `server` names it nowhere."""
    trees = {path.name: ast.parse(path.read_text()) for path in (ROOT / "runtime").glob("*.py")}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    modules = [(name, node.module or "") for name, node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [(name, alias.name) for name, node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names]  # fmt: skip
    assert not [(name, module) for name, module in modules if "server" in module.split(".")]


def imported_beside(path: Path) -> set[str]:
    """The files of its own folder that a file imports anywhere, also for type checkers alone."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {node.module or "" for node in nodes if node.level == 1} | {
        (node.module or "").removeprefix(f"cfgdiff.{path.parent.name}.") for node in nodes if not node.level
    }
    names |= {alias.name for node in nodes if node.level == 1 and not node.module for alias in node.names}
    return {name for name in names if (path.parent / f"{name}.py").is_file()}


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_no_file_imports_itself_by_way_of_others(layer: str) -> None:
    left = {path.stem: imported_beside(path) for path in (ROOT / layer).glob("*.py")}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def test_the_library_names_parameters_not_flags() -> None:
    """In all texts but docstrings and those that name a command to run."""
    wrong = []
    for path in sorted((ROOT / "runtime").glob("*.py")):
        if path.name in WITH_COMMANDS:
            continue
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if id(node) not in docs and re.search(r"(?<!\S)--[a-z]", text) and "cfgdiff " not in text:
                wrong.append(f"{path.name}: {text}")
    assert not wrong


RUN = """import sys
sys.argv = ['cfgdiff-run', '--class', 'frog', '--n', '1', '--steps', '2', '--out', 'x.png']
from cfgdiff.cli.run import main
main(standalone_mode=False)"""


@pytest.mark.parametrize("code", ["import cfgdiff.runtime", RUN])
def test_the_runtime_never_loads_torch(code: str, tmp_path: Path) -> None:
    check = (
        f"{code}\nimport sys\nassert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'onnx', 'pydantic')]"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_plain_dependencies_are_the_small_ones() -> None:
    """Their installed size is measured by .ci/run, in a new environment with the wheel alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {d.split(">")[0] for d in project["dependencies"]} == {"numpy", "pillow", "click", "onnxruntime"}
    assert {"train", "cuda", "openvino", "tensorrt", "serve", "dev"} <= set(project["optional-dependencies"])
