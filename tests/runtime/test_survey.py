"""What is said of every engine, with and without a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle, load_bundle, survey
from cfgdiff.runtime import engine as engines
from cfgdiff.runtime.errors import Failure

Write = Callable[..., Any]


class Counted:
    """An engine that counts how many of its kind are open."""

    name, max_batch, now, opened = "cpu", 8, 0, list[str]()

    def __init__(self, bundle: Bundle, precision: str, *_: object) -> None:
        if precision == "bfloat16":
            raise Failure("no bfloat16")
        self.precision = precision.replace("auto", "float32")
        self.opened.append(precision)
        Counted.now += 1
        assert Counted.now == 1  # one by one

    def close(self) -> None:
        Counted.now -= 1


def refuse(*_: object) -> None:
    raise Failure("not here; pip install it")


def test_every_precision_of_every_engine_is_opened_and_closed(packaged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "OPENERS", {})
    monkeypatch.setattr(survey, "OPENERS", engines.OPENERS)
    monkeypatch.setattr(Counted, "opened", [])
    engines.OPENERS.update({"cuda": refuse, "cpu": Counted, "openvino": Counted})  # type: ignore[dict-item]
    cuda, cpu, openvino = survey.survey(packaged)
    assert (cuda.engine, cuda.precisions, cuda.remarks, cuda.auto) == ("cuda", (), ("not here; pip install it",), False)
    assert (cpu.precisions, cpu.remarks, cpu.auto) == (("float32",), (), True) and cpu.package.startswith("onnxruntime")
    assert (openvino.precisions, openvino.remarks, openvino.auto) == (("float32",), ("no bfloat16",), False)
    assert Counted.opened == ["auto", "float32", "float32"] and Counted.now == 0
    del engines.OPENERS["cpu"], engines.OPENERS["openvino"]
    assert [row.auto for row in survey.survey(packaged)] == [False]


def test_certificates_of_tensorrt_engines(gpu: Any, copied: Path, write_engine: Write) -> None:
    good, other = write_engine(), write_engine(passed=None, profile=(1, 1, 1))
    old, failed = write_engine(version="1.4"), write_engine(passed=False, profile=(1, 1, 2))
    row = survey.survey(load_bundle(copied))[0]
    assert (row.engine, row.precisions, row.auto) == ("tensorrt", ("float32",), True)
    said = "\n".join(row.remarks)
    assert len(row.remarks) == 4 and f"{good.path.name}: certified\n" in said + "\n"
    assert f"{other.path}: not certified; run cfgdiff verify" in said and f"{failed.path}: failed its verification" in said
    assert f"{old.path.name}: certified; {old.path}: built for version 1.4" in said
    assert not gpu.memory and not gpu.streams


def test_a_sidecar_that_cannot_be_read_is_told(copied: Path) -> None:
    (copied / "x.engine.json").write_text("{")
    rows = {row.engine: row for row in survey.survey(load_bundle(copied))}
    assert rows["tensorrt"].precisions == () and "not the sidecar of an engine" in rows["tensorrt"].remarks[0]
    assert rows["cpu"].precisions == ("float32",)


def test_what_is_missing_comes_with_the_command_that_brings_it(packaged: Bundle) -> None:
    rows = {row.engine: row for row in survey.survey(packaged)}
    assert list(rows) == ["tensorrt", "cuda", "cpu", "openvino"] and sum(row.auto for row in rows.values()) == 1
    assert "build one with: cfgdiff export --from-bundle" in rows["tensorrt"].remarks[0]
    for row in rows.values():
        assert row.precisions or "pip install" in row.remarks[0] or row.engine == "tensorrt"
