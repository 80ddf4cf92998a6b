"""Which TensorRT is taken and which engine is planned, from what is installed, what GPU is here and what the user asks
for."""

import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from cfgdiff.export.tensorrt import COMMON_SM, find_module, gpu_here, parse_profile, parse_sm, plan_key
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.sidecar import ANY_DRIVER, EngineKey


@pytest.fixture(autouse=True)
def path(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, so that no test sees a GPU, whatever machine it runs on."""
    folder = tmp_path_factory.mktemp("path")
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def gpu(path: Path) -> Callable[[str], None]:
    """A function that puts an nvidia-smi in place which answers so."""

    def install(answer: str) -> None:
        script = path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\n{answer}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return install


def fake(name: str = "tensorrt", version: str = "11.0.0") -> ModuleType:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    module.Builder = object  # type: ignore[attr-defined]
    module.ComputeCapability = SimpleNamespace(
        __members__={"NONE": 0, "CURRENT": 1, "SM86": 86, "SM89": 89, "SM120": 120}
    )  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("text", "profile"), [("1,64,256", (1, 64, 256)), ("8, 8, 8", (8, 8, 8)), ("1,1,4096", (1, 1, 4096))]
)
def test_a_profile_is_read(text: str, profile: tuple[int, int, int]) -> None:
    assert parse_profile(text) == profile


@pytest.mark.parametrize(
    "text",
    [
        "64,1,256",
        "1,256,64",
        "0,1,2",
        "1,2,4097",
        "1,2",
        "1,2,3,4",
        "-1,2,3",
        "1.0,2,3",
        "big",
        "",
        "1" * 5000,
        "1,2,3\n",
    ],
)
def test_a_profile_that_makes_no_sense_is_quoted(text: str) -> None:
    with pytest.raises(
        BadInput, match=r"batch: expected 1 <= MIN <= OPT <= MAX \(at most 4096\) as in 1,64,256, found '"
    ) as error:
        parse_profile(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sm"),
    [
        ("86,89,120", ("8.6", "8.9", "12.0")),
        ("8.6", ("8.6",)),
        ("12.0, 75", ("12.0", "7.5")),
        ("89,8.9,86", ("8.9", "8.6")),
    ],
)
def test_architectures_are_read(text: str, sm: tuple[str, ...]) -> None:
    assert parse_sm(text) == sm


@pytest.mark.parametrize("text", ["", "8", "sm86", "86,", "86;89", "1200", "06", "8.66", "ampere", "-86", "86\n,x"])
def test_architectures_that_are_none_are_quoted(text: str) -> None:
    with pytest.raises(BadInput, match="sm: expected compute capabilities as in 86,89,120, found '") as error:
        parse_sm(text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("echo '8.9, 550.54.15'; echo '9.0, 550.54.15'", ("8.9", "550.54.15")),
        ("echo '12.0, 575.51'", ("12.0", "575.51")),
        ("echo 'No devices were found'", None),
        ("echo '[N/A], 550.54.15'", None),
        ("echo '8.9, 550.54.15'; exit 9", None),
    ],
)
def test_the_gpu_is_what_nvidia_smi_says(
    gpu: Callable[[str], None], answer: str, found: tuple[str, str] | None
) -> None:
    assert gpu_here() is None  # there is no nvidia-smi yet
    gpu(answer)
    assert gpu_here() == found


def test_without_tensorrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # an import of it fails
    for stub in (None, ModuleType("tensorrt")):
        monkeypatch.setitem(sys.modules, "tensorrt", stub)
        with pytest.raises(
            Failure,
            match=r"^TensorRT is not installed; pip install tensorrt-rtx \(any machine\) or tensorrt \(with a GPU\)$",
        ):
            find_module()


def test_a_package_that_breaks_on_import_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise RuntimeError('this package only points to another')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(Failure, match="TensorRT is not installed"):
        find_module()


def test_of_both_the_one_that_fits_the_machine_is_taken(
    gpu: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rtx = fake(), fake("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", plain)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert find_module() is rtx
    gpu("echo '8.9, 550.54.15'")
    assert find_module() is plain
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_module() is rtx


def test_tensorrt_rtx_builds_for_any_architecture_it_knows(gpu: Callable[[str], None]) -> None:
    rtx = fake("tensorrt_rtx", "1.7.1")
    expected = EngineKey("d", "tensorrt_rtx", "1.7.1", COMMON_SM, ANY_DRIVER, "float16", (1, 2, 4))
    assert plan_key(rtx, "d", "float16", (1, 2, 4), None) == expected
    gpu("echo '8.9, 550.54.15'")
    assert plan_key(rtx, "d", "float16", (1, 2, 4), None) == replace(expected, sm=("8.9",))
    assert plan_key(rtx, "d", "float16", (1, 2, 4), ("12.0", "8.6")) == replace(expected, sm=("12.0", "8.6"))
    with pytest.raises(
        BadInput, match=r"sm: tensorrt_rtx 1\.7\.1 cannot build for 9\.0; choose from 8\.6, 8\.9, 12\.0$"
    ):
        plan_key(rtx, "d", "float16", (1, 2, 4), ("8.6", "9.0"))
    gpu("echo '9.0, 580.159.04'")  # of an H200
    with pytest.raises(BadInput, match=r"cannot build for 9\.0; .*; for this GPU, pip install tensorrt$"):
        plan_key(rtx, "d", "float16", (1, 2, 4), None)


def test_the_common_architectures_are_known_to_the_real_one() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    assert plan_key(rtx, "d", "float32", (1, 2, 4), None).sm == COMMON_SM
    with pytest.raises(BadInput, match=r"cannot build for 9\.9; choose from .*8\.6.*12\.0"):
        plan_key(rtx, "d", "float32", (1, 2, 4), ("9.9",))


def test_plain_tensorrt_builds_for_the_gpu_that_is_here(gpu: Callable[[str], None]) -> None:
    with pytest.raises(
        Failure, match=r"tensorrt 11\.0\.0 builds only where a GPU is, .*; pip install tensorrt-rtx, which needs none"
    ) as error:
        plan_key(fake(), "d", "float32", (1, 2, 4), None)
    assert not isinstance(error.value, BadInput)
    gpu("echo '8.9, 550.54.15'")
    expected = EngineKey("d", "tensorrt", "11.0.0", ("8.9",), "550.54.15", "float32", (1, 2, 4))
    assert (
        plan_key(fake(), "d", "float32", (1, 2, 4), None)
        == plan_key(fake(), "d", "float32", (1, 2, 4), ("8.9",))
        == expected
    )
    with pytest.raises(
        BadInput,
        match=r"sm: tensorrt builds for the GPU that is here only, expected 8\.9, found 8\.6,8\.9; leave it out",
    ):
        plan_key(fake(), "d", "float32", (1, 2, 4), ("8.6", "8.9"))
