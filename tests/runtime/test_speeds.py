"""What is measured of the engines for CPUs, on a clock of the tests' own, and how it is kept."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfgdiff.runtime import Bundle, Failure, engines, load_bundle, speeds
from cfgdiff.runtime.cache import cache_folder
from cfgdiff.runtime.processor import Processor
from cfgdiff.runtime.speeds import Speed, key_of


def by_way(found: tuple[Speed, ...]) -> dict[str, Speed]:
    return {f"{s.engine} {s.precision}": s for s in found}


def kept() -> Path:
    (file,) = (cache_folder() / "engines").iterdir()
    return file


def test_calls_are_timed_and_pictures_compared(packaged: Bundle, fake_cpu: Any) -> None:
    found = by_way(speeds.measure(packaged))
    assert list(found) == ["cpu float32", "openvino float32", "openvino bfloat16"]
    exact, low = found["cpu float32"], found["openvino bfloat16"]
    assert (exact.opened, exact.one, exact.many) == pytest.approx((0.2 + 0.009, 0.009, 0.513 * 1.0), abs=1e-3)
    assert (low.one, low.many) == pytest.approx((0.004, 0.13), abs=1e-3)
    assert low.opened == pytest.approx(1.01, abs=1e-3)  # float32's, which loaded the library
    assert exact.psnr_db == 100 and 45 < low.psnr_db < 100 and exact.certified and low.certified


def test_an_engine_whose_pictures_are_not_finite_is_passed_over(
    packaged: Bundle, fake_cpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures(engine: Any, bundle: Bundle, n: int, steps: int) -> np.ndarray:
        if engine.precision == "bfloat16":
            raise Failure("openvino, bfloat16: the network's answer at t = 500 is not finite")
        return np.zeros((n, 32, 32, 3), np.uint8)

    monkeypatch.setattr(speeds, "_pictures", pictures)
    found = by_way(speeds.measure(packaged))
    assert "t = 500 is not finite" in found["openvino bfloat16"].against
    assert not found["openvino bfloat16"].certified and found["openvino float32"].certified


def test_a_slow_network_is_timed_on_fewer_pictures_and_compared_on_fewer(packaged: Bundle, fake_cpu: Any) -> None:
    fake_cpu.kinds = {
        ("cpu", "float32"): {"opened": 0, "call": 0, "row": 0.01},
        ("openvino", "float32"): {"opened": 0, "call": 0, "row": 1},
    }
    found = by_way(speeds.measure(packaged))
    assert found["cpu float32"].many == pytest.approx(64 * 0.02) and found["openvino float32"].many == pytest.approx(
        64 * 2
    )
    defaults = dataclasses.replace(packaged.defaults, steps=6)
    six = dataclasses.replace(packaged, defaults=defaults)
    assert speeds._affordable(six, 0.1) == (3, 6) and speeds._affordable(six, 9) == (1, 6)
    defaults = dataclasses.replace(packaged.defaults, steps=1000)
    assert speeds._affordable(dataclasses.replace(packaged, defaults=defaults), 1e-4) == (8, 50)


@pytest.mark.parametrize(
    ("kind", "certified", "right", "verdict"),
    [
        ({"noise": 1e-3}, True, True, "dB from float32's"),
        ({"noise": 0.05}, False, True, "dB from float32's, limit 40"),
        ({"mixed": 0.5}, False, False, "its answers contradict each other (rows with and without w: error 5"),
        ({"noise": float("nan")}, False, False, "contradict each other"),
        ({"fails": "no instructions\n for it"}, False, False, "no instructions for it"),
    ],
)
def test_what_is_no_float32_is_not_certified(
    packaged: Bundle, fake_cpu: Any, kind: dict, certified: bool, right: bool, verdict: str
) -> None:  # fmt: skip
    fake_cpu.kinds["openvino", "bfloat16"] |= kind
    low = by_way(speeds.measure(packaged))["openvino bfloat16"]
    assert (low.certified, low.right) == (certified, right) and verdict in low.verdict
    fake_cpu.kinds["openvino", "float32"] |= kind
    assert by_way(speeds.measure(packaged))["openvino float32"].right == certified  # float32 must be float32


def test_without_the_reference_nothing_is_measured_or_kept(packaged: Bundle, fake_cpu: Any) -> None:
    fake_cpu.kinds["cpu", "float32"] = {"fails": "both are installed"}
    assert speeds.speeds(packaged) == (Speed("cpu", "float32", "both are installed"),)
    assert fake_cpu.opened == [] and not (cache_folder() / "engines").exists()


def test_it_is_done_once(packaged: Bundle, fake_cpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert speeds.speeds(packaged, 2, kept_only=True) == () and not fake_cpu.opened
        first = speeds.speeds(packaged, 2)
        opened = len(fake_cpu.opened)
        assert (
            speeds.speeds(packaged, 2) == first == speeds.speeds(packaged, 2, kept_only=True)
            and len(fake_cpu.opened) == opened == 3
        )
        fake_cpu.kinds["cpu", "float32"]["row"] = 0.002
        assert speeds.speeds(packaged, 2, anew=True) != first and len(fake_cpu.opened) == 2 * opened
        assert by_way(speeds.speeds(packaged, 2))["cpu float32"].one == pytest.approx(0.005)
    assert [line.split(",")[0] for line in caplog.messages] == ["measuring the engines of this machine"] * 2
    tree = json.loads(kept().read_text())
    assert tree["key"]["threads"] == "2" and list(tree["key"]["graphs"]) == ["float32"]
    assert [path.name for path in kept().parent.iterdir() if "partial" in path.name] == []


def test_the_key_holds_all_that_figures_depend_on(
    packaged: Bundle, small_bundle: Bundle, fake_cpu: Any, monkeypatch: pytest.MonkeyPatch, edited: Callable[..., Path]
) -> None:
    def steps(tree: dict) -> None:
        tree["defaults"]["steps"] = 7

    other_graph = dataclasses.replace(packaged.variants["float32"], files={"model.onnx": "0" * 64})
    keys = [
        key_of(packaged, 1),
        key_of(packaged, 2),
        key_of(packaged, None),
        key_of(small_bundle, 1),
        key_of(load_bundle(edited(steps)), 1),
        key_of(dataclasses.replace(packaged, variants={"float32": other_graph}), 1),
        key_of(dataclasses.replace(packaged, fitted={}), 1),
    ]
    for name, value in (
        ("package", lambda name: f"{name} 99"),
        ("own_version", lambda: "99"),
        ("processor", lambda: Processor("x", frozenset())),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(speeds, name, value)
            keys.append(key_of(packaged, 1))
    monkeypatch.setattr(engines, "util", type("None", (), {"find_spec": lambda name: None}))
    keys.append(key_of(packaged, 1))  # OpenVINO has gone
    files = {speeds._file_of(key) for key in keys}
    assert len(files) == len(keys) == 11 and key_of(packaged, 1) == keys[-1]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"key": 1, "speeds": []}', '{"speeds": [{"engine": "cpu"}]}', "wrong figure", "wrong key"],
)
def test_a_damaged_file_is_measured_again(packaged: Bundle, fake_cpu: Any, damage: str) -> None:
    first = speeds.speeds(packaged, 1)
    tree = json.loads(kept().read_text())
    if damage == "wrong figure":
        tree["speeds"][0]["many"] = "fast"
    if damage == "wrong key":
        tree["key"]["threads"] = "3"
    kept().write_text(json.dumps(tree) if damage.startswith("wrong") else damage)
    assert speeds.speeds(packaged, 1, kept_only=True) == ()
    assert by_way(speeds.speeds(packaged, 1)).keys() == by_way(first).keys() and len(fake_cpu.opened) == 6
    assert len(speeds.speeds(packaged, 1, kept_only=True)) == 3  # it is whole again


def test_a_cache_that_cannot_be_written_or_is_nowhere_does_no_harm(
    packaged: Bundle, fake_cpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "cfgdiff"):
        assert len(speeds.speeds(packaged)) == 3
    assert "cannot be kept" in caplog.text
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert len(speeds.speeds(packaged)) == 3 and len(fake_cpu.opened) == 6


def test_a_process_that_dies_while_it_writes_leaves_the_old_file(
    packaged: Bundle, fake_cpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds.speeds(packaged)
    before = kept().read_bytes()
    left = kept().with_name(f".{kept().name}.0123abcd.partial")
    left.write_bytes(before[:9])
    monkeypatch.setattr(os, "replace", lambda source, target: os.remove(source))
    speeds.speeds(packaged, anew=True)
    assert kept().read_bytes() == before and list(kept().parent.iterdir()) == [kept()]


def test_expected_seconds_are_those_of_the_batch_and_of_opening() -> None:
    found = Speed("openvino", "bfloat16", opened=2.0, one=0.01, many=0.64)
    assert found.seconds(None, 64) == 0.64
    assert found.seconds(50, 1) == pytest.approx(2 + 50 * 0.01)
    assert found.seconds(640, 64) == found.seconds(640, 500) == pytest.approx(8.4)
    assert found.seconds(330, 33) == pytest.approx(2 + 10 * (0.01 + 0.63 * 32 / 63))
