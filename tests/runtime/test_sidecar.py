"""An engine's key, sidecar and certificate: what is written is read again, and all that does not fit is one line naming
it."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import Variant
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.sidecar import (
    ANY_DRIVER,
    BuiltEngine,
    EngineKey,
    check_certificate,
    check_file,
    check_key,
    engines_beside,
    expected_key,
    graph_digest,
    read_sidecar,
    sidecar_of,
    write_sidecar,
)

DATA = b"an engine"
SHA = hashlib.sha256(DATA).hexdigest()
KEY = EngineKey("a" * 64, "tensorrt_rtx", "1.7.1.116", ("8.6", "12.0"), ANY_DRIVER, "float32", (1, 64, 256))
OTHER: dict[str, Any] = {
    "graph": "b" * 64,
    "module": "tensorrt",
    "version": "2.0",
    "sm": ("8.9",),
    "driver": "550.1",
    "precision": "float16",
    "profile": (1, 1, 2),
}


@pytest.fixture
def engine(tmp_path: Path) -> BuiltEngine:
    """An engine with its sidecar, not certified."""
    built = BuiltEngine(tmp_path / KEY.file_name, KEY, SHA)
    built.path.write_bytes(DATA)
    write_sidecar(built)
    return built


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        Certificate(True, SHA),
        Certificate(False, SHA, failures=("nan",), rows={"rows twice": 0.5}, x0={"+1": 0.1}),
    ],
)
def test_what_is_written_is_read_again(engine: BuiltEngine, certificate: Certificate | None) -> None:
    certified = replace(engine, certificate=certificate)
    write_sidecar(certified)
    assert read_sidecar(sidecar_of(engine.path)) == certified
    assert sorted(engine.path.parent.iterdir()) == [engine.path, sidecar_of(engine.path)]


def test_a_sidecar_can_be_read_by_people(engine: BuiltEngine) -> None:
    tree = json.loads(sidecar_of(engine.path).read_text())
    assert tree["key"].keys() == OTHER.keys() and tree["key"]["sm"] == ["8.6", "12.0"] and tree["sha256"] == SHA


def test_every_part_of_a_key_is_in_the_name_of_its_engine() -> None:
    assert OTHER.keys() == {field.name for field in fields(EngineKey)}
    assert KEY.file_name == f"float32-tensorrt_rtx-sm86+120-{KEY.digest[:12]}.engine"
    names = {replace(KEY, **{part: value}).file_name for part, value in OTHER.items()}
    assert len(names | {KEY.file_name}) == len(OTHER) + 1
    assert replace(KEY).digest == KEY.digest


def test_the_digest_of_a_graph_is_of_all_its_files_in_any_order() -> None:
    def digest(files: dict[str, str]) -> str:
        return graph_digest(Variant("model.onnx", "float32", files, None))

    assert digest({"model.onnx": "1", "weights": "2"}) == digest({"weights": "2", "model.onnx": "1"})
    assert len({digest(f) for f in ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "c": "2"}, {"a": "1"})}) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("key"),
        lambda t: t.pop("sha256"),
        lambda t: t.pop("certificate"),
        lambda t: t.update(key=["float32"]),
        lambda t: t["key"].pop("driver"),
        lambda t: t["key"].update(profile=[1, 2]),
        lambda t: t["key"].update(profile=["one", "two", "three"]),
        lambda t: t["key"].update(sm=86),
        lambda t: t.update(certificate={}),
        lambda t: t.update(certificate={"passed": "yes"}),
        lambda t: t.update(certificate="passed"),
        lambda t: t.update(certificate={"passed": False, "failures": [1]}),
        lambda t: t["key"].update(profile=[1, 2, float("inf")]),
        lambda t: t["key"].update(profile=[0, 2, 4]),
        lambda t: t["key"].update(precision=8),
        lambda t: t["key"].update(driver="\ud800"),
    ],
)
def test_a_wrong_sidecar_is_named(engine: BuiltEngine, change: Callable[[dict], None]) -> None:
    sidecar = sidecar_of(engine.path)
    tree = json.loads(sidecar.read_text())
    change(tree)
    sidecar.write_text(json.dumps(tree))
    with pytest.raises(Failure, match="not the sidecar of an engine") as error:
        read_sidecar(sidecar)
    assert str(error.value).startswith(f"{sidecar}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{no json", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_sidecar_that_is_no_json_object_is_named(engine: BuiltEngine, text: bytes) -> None:
    sidecar_of(engine.path).write_bytes(text)
    with pytest.raises(Failure, match=r"not the sidecar of an engine .* build the engine again"):
        read_sidecar(sidecar_of(engine.path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.engine.json")
    with pytest.raises(Failure, match="not the sidecar of an engine"):
        engines_beside(tmp_path)


def test_a_sidecar_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"x\.engine\.json: cannot be read \(No such file or directory\); build"):
        read_sidecar(tmp_path / "x.engine.json")


def test_the_engines_of_a_bundle_are_those_with_a_sidecar(copied: Path) -> None:
    assert engines_beside(copied) == []
    (copied / "orphan.engine").write_bytes(DATA)
    built = [BuiltEngine(copied / f"{name}.engine", KEY, SHA) for name in ("b", "a")]
    for engine in built:
        write_sidecar(engine)
    assert engines_beside(copied) == built[::-1]
    (copied / "c.engine.json").write_text("{}")
    with pytest.raises(Failure, match=r"c\.engine\.json: not the sidecar"):
        engines_beside(copied)


def test_an_engine_is_read_where_it_is_the_one_that_was_built(engine: BuiltEngine) -> None:
    assert check_file(engine) == DATA
    engine.path.write_bytes(b"an angine")
    with pytest.raises(
        Failure, match=rf"{KEY.precision}.*: damaged, sha256 is .*, expected {SHA[:12]}…; rebuild it here with: cfgdiff"
    ):
        check_file(engine)
    engine.path.unlink()
    with pytest.raises(Failure, match=r"\.engine: cannot be read \(No such file or directory\); rebuild it here"):
        check_file(engine)


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("graph", "graph aaaaaaaaaaaa… (here: bbbbbbbbbbbb…)"),
        ("module", "module tensorrt_rtx (here: tensorrt)"),
        ("version", "version 1.7.1.116 (here: 2.0)"),
        ("sm", "sm 8.6,12.0 (here: 8.9)"),
        ("driver", "driver any (here: 550.1)"),
        ("precision", "precision float32 (here: float16)"),
        ("profile", "profile 1,64,256 (here: 1,1,2)"),
    ],
)
def test_the_part_of_a_key_that_does_not_fit_is_named(engine: BuiltEngine, part: str, shown: str) -> None:
    check_key(engine, replace(KEY))
    with pytest.raises(Failure) as error:
        check_key(engine, replace(KEY, **{part: OTHER[part]}))
    folder = engine.path.parent
    command = f"cfgdiff export --from-bundle {folder} --tensorrt --batch 1,64,256 --out {folder} --force"
    assert str(error.value) == f"{engine.path}: built for {shown}; rebuild it here with: {command}"


def test_all_parts_that_do_not_fit_are_named(engine: BuiltEngine) -> None:
    with pytest.raises(Failure, match=r"version 1\.7\.1\.116 \(here: 3\), sm 8\.6,12\.0 \(here: 9\.0\); rebuild"):
        check_key(engine, replace(KEY, version="3", sm=("9.0",)))


def test_an_engine_must_be_of_the_bundles_graph_and_fit_the_gpu(packaged: Bundle, tmp_path: Path) -> None:
    graph = graph_digest(packaged.variant("float32"))
    portable = BuiltEngine(tmp_path / "x.engine", replace(KEY, graph=graph), SHA)
    for sm in KEY.sm:
        check_key(
            portable, expected_key(packaged, portable, KEY.version, sm, "570.2")
        )  # the driver does not matter to it
    with pytest.raises(Failure, match=r"built for sm 8\.6,12\.0 \(here: 8\.9\); rebuild"):
        check_key(portable, expected_key(packaged, portable, KEY.version, "8.9", "570.2"))
    bound = replace(portable, key=replace(portable.key, driver="550.1"))
    check_key(bound, expected_key(packaged, bound, KEY.version, "8.6", "550.1"))
    with pytest.raises(Failure, match=r"built for driver 550\.1 \(here: 570\.2\); rebuild"):
        check_key(bound, expected_key(packaged, bound, KEY.version, "8.6", "570.2"))
    stale = replace(portable, key=KEY)
    with pytest.raises(Failure, match=rf"built for graph aaaaaaaaaaaa… \(here: {graph[:12]}…\); rebuild"):
        check_key(stale, expected_key(packaged, stale, KEY.version, "8.6", "570.2"))
    unknown = replace(portable, key=replace(KEY, precision="int8"))
    with pytest.raises(BadInput, match="no 'int8' variant"):
        expected_key(packaged, unknown, KEY.version, "8.6", "570.2")


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (None, "not certified; run cfgdiff verify FOLDER --engine tensorrt here, or take it with `uncertified`"),
        (
            Certificate(True, "0" * 64),
            "its certificate is of another engine; run cfgdiff verify FOLDER --engine tensorrt again",
        ),
        (Certificate(True), "its certificate is of another engine; run cfgdiff verify FOLDER --engine tensorrt again"),
        (
            Certificate(False, SHA, failures=("psnr 20", "nan")),
            "failed its verification (psnr 20; nan); rebuild it here with",
        ),
        (Certificate(False, SHA), "failed its verification (no reason given); rebuild it here with"),
    ],
)
def test_an_engine_needs_a_certificate_of_its_own(
    engine: BuiltEngine, certificate: Certificate | None, message: str
) -> None:
    check_certificate(replace(engine, certificate=Certificate(True, SHA)))
    with pytest.raises(Failure) as error:
        check_certificate(replace(engine, certificate=certificate))
    assert str(error.value).startswith(f"{engine.path}: {message.replace('FOLDER', str(engine.path.parent))}")
    assert "\n" not in str(error.value)
