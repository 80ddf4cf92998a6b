"""`cfgdiff export` and `cfgdiff verify` as a user runs them, from the packaged bundle, with and without PyTorch and
TensorRT."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cfgdiff.cli.verify import verify
from cfgdiff.runtime import load_bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.sidecar import engines_beside

pytest.importorskip("onnx", reason="needs ONNX: pip install 'cfgdiff[train]'")
ENTRY = "from cfgdiff.cli.main import main; main()"
RUN = "from cfgdiff.cli.run import main; main()"
NO_TORCH = "import sys; sys.modules['torch'] = None; "
NO_OPENVINO = "import sys; sys.modules['openvino'] = None; "
NO_TENSORRT = "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None; "


def call(code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model exported anew with engines for three architectures in all precisions, without PyTorch."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    out = tmp_path_factory.mktemp("engines") / "b"
    flags = ["--fp16", "--int8", "--tensorrt", "--steps", 4, "--sm", "86,89,120"]
    made = call(NO_TORCH + ENTRY, "export", "--from-bundle", *flags, "--out", out)
    assert made.returncode == 0, made.stderr
    assert "float16: passed" in made.stderr and "int8: passed" in made.stderr and made.stderr.count("batch 1-256") == 3
    return out


def test_engines_for_three_architectures_and_all_variants(engines: Path) -> None:
    bundle, built = load_bundle(engines), engines_beside(engines)
    assert list(bundle.variants) == ["float32", "float16", "int8"] and bundle.defaults.steps == 4
    assert [e.key.precision for e in built] == ["float16", "float32", "int8"]
    for engine in built:
        assert (engine.key.sm, engine.key.profile, engine.certificate) == (("8.6", "8.9", "12.0"), (1, 64, 256), None)
        assert (
            engine.path.stat().st_size > 1e6
            and json.loads(engine.path.with_suffix(".engine.json").read_text())["key"]["module"]
        )


def test_float16_and_int8_keep_to_what_is_asked_of_them(engines: Path) -> None:
    found = {name: v.certificate for name, v in load_bundle(engines).variants.items() if v.certificate}
    assert max(found["float16"].prediction.values()) < 0.01
    assert found["int8"].psnr_db > 28 and found["float16"].psnr_db > 40


def test_int8_runs(engines: Path, tmp_path: Path) -> None:
    result = call(
        RUN,
        "--model",
        engines,
        "--precision",
        "int8",
        "--class",
        "frog",
        "--n",
        2,
        "--out",
        tmp_path / "x.png",
        "--json",
    )
    assert result.returncode == 0 and json.loads(result.stdout)["precision"] == "int8"


def test_an_engine_is_refused_without_a_gpu_or_certificate_and_auto_goes_on(engines: Path, tmp_path: Path) -> None:
    args = ["--model", engines, "--class", "frog", "--n", 1, "--out", tmp_path / "x.png"]
    named = call(RUN, *args, "--engine", "tensorrt")
    assert (
        named.returncode == 1
        and "not certified; run cfgdiff verify" in named.stderr
        and "Traceback" not in named.stderr
    )
    auto = call(RUN, *args, "-v")
    assert auto.returncode == 0 and "engine tensorrt passed over" in auto.stderr and "engine cpu" in auto.stderr


def test_verify_certifies_what_works_here(engines: Path) -> None:
    result = call(NO_OPENVINO + ENTRY, "verify", engines, "--n", 8)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^cpu (\w+): passed;", result.stderr, re.MULTILINE) == ["float32", "float16", "int8"]
    said = result.stderr.splitlines()
    names = ", ".join(f"openvino {precision}" for precision in ("float32", "float16", "int8", "bfloat16"))
    missing = f"{names}: not verified: OpenVINO is not installed; pip install"
    assert [line for line in said if line.startswith(missing)]  # one line for all of them
    assert [
        line
        for line in said
        if re.match("cuda float32: passed;|cuda float32, cuda float16, cuda int8: not verified: ", line)
    ]
    assert sum("-tensorrt_rtx-" in line for line in said) <= 3 and all(
        ": passed;" in line or ": not verified: " in line for line in said
    )
    assert {v.certificate.pictures for v in load_bundle(engines).variants.values() if v.certificate} == {8}
    shown = call(ENTRY, "info", engines)
    assert (
        shown.stdout.count("passed, 8 pictures") == 2
        and shown.stdout.count("the reference; its rows passed") == 1
        and "TensorRT engine" in shown.stdout
    )
    only = call(ENTRY, "verify", engines, "--engine", "tensorrt", "--n", 8)
    assert only.returncode == 1 and "Traceback" not in only.stderr


@pytest.mark.parametrize(("asked", "code"), [([], 0), (["--engine", "openvino"], 1)])
def test_a_way_of_openvinos_own_that_fails_is_told_and_fails_verify_only_where_asked_for(
    asked: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Nothing takes bfloat16 on OpenVINO uncertified, unless it is named."""
    from cfgdiff.export import certify

    def fake(chosen: list, *_: object) -> Iterator[tuple]:
        for candidate in chosen:
            failures = ("x0 is off",) * (candidate.precision == "bfloat16")
            errors = {"prediction": {"+0": 1e-6}, "x0": {"+0": 1e-6}}
            yield (
                candidate,
                Certificate(not failures, failures=failures, **errors, pictures=8, psnr_db=99.0, features=0.0),
            )

    monkeypatch.setattr(certify, "certify", fake)
    monkeypatch.setattr("cfgdiff.export.verify.reference", lambda *_: None)
    made = CliRunner().invoke(verify, ["--n", "8", "--no-store", *asked])
    assert made.exit_code == code, made.output
    assert "openvino bfloat16: FAILED: x0 is off" in made.output and ("taken by name only" in made.output) == (
        not asked
    )
    said = "cpu float32: passed; its rows agree with each other and with the guidance equation, "
    said += "and the others are compared with it"
    assert (said in made.output) == (not asked)


@pytest.mark.parametrize("file", ["model-int8.onnx", "float16-*.engine"])
def test_one_wrong_byte_is_named(engines: Path, tmp_path: Path, file: str) -> None:
    for name in engines.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    (damaged,) = tmp_path.glob(file)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    args = ["--engine", "tensorrt", "--precision", "float16", "--uncertified"] if file.endswith(".engine") else []
    result = call(RUN, "--model", tmp_path, *args, "--class", "frog", "--n", 1, "--out", tmp_path / "x.png")
    assert result.returncode == 1 and "damaged, sha256 is" in result.stderr and damaged.name in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_tensorrt_it_says_so_and_writes_the_rest(tmp_path: Path) -> None:
    args = ["export", "--from-bundle", "--steps", 1]
    asked = call(NO_TENSORRT + ENTRY, *args, "--tensorrt", "--out", tmp_path / "asked")
    assert asked.returncode == 1 and asked.stderr.count("TensorRT is not installed; pip install tensorrt-rtx") == 1
    auto = call(NO_TENSORRT + ENTRY, *args, "--out", tmp_path / "auto")
    assert auto.returncode == 0 and auto.stderr.count("TensorRT is not installed") == 1
    assert (tmp_path / "asked" / "model.onnx").read_bytes() != b"" and load_bundle(
        tmp_path / "asked"
    ).defaults.steps == 1


def test_ctrl_c_while_an_engine_is_built_leaves_no_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    command = [
        sys.executable,
        "-c",
        ENTRY,
        "export",
        "--from-bundle",
        "--steps",
        "1",
        "--tensorrt",
        "--out",
        str(tmp_path / "b"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("comparing" in line for line in lines)  # the engine is built next, for some seconds
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in said, said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["export"], 2, "--from-bundle [BUNDLE], found neither"),
        (["export", "R", "--from-bundle", "B"], 2, "found both"),
        (["export", "--from-bundle", "B"], 1, "no bundle there"),
        (["export", "--from-bundle", "--out", "O", "--batch", "8,4,16"], 2, "--batch: expected 1 <= MIN <= OPT <= MAX"),
        (["export", "--from-bundle", "--out", "O", "--sm", "wide"], 2, "--sm: expected compute capabilities"),
        (
            ["export", "--from-bundle", "--out", "O", "--guidance", "nan"],
            2,
            "--guidance: expected finite numbers, found nan",
        ),
        (["export", "--from-bundle", "--out", "O", "--sampler", "dim"], 2, "did you mean 'ddim'"),
        (["verify", "B"], 1, "no bundle there"),
        (["verify", "--engine", "tensorrt"], 1, "has no TensorRT engine"),
        (["verify", "--n", "2"], 2, "--n"),
    ],
)
def test_every_mistake_is_one_line(args: list, code: int, expected: str, tmp_path: Path) -> None:
    result = call(ENTRY, *[str(tmp_path / a) if a in {"O", "R", "B"} else a for a in args])
    assert result.returncode == code and expected in result.stderr and "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert len(lines) == 1 and list(tmp_path.iterdir()) == []


def test_a_bundle_is_no_checkpoint(packaged) -> None:
    result = call(ENTRY, "export", packaged.path, "--out", "nowhere")
    assert result.returncode == 1 and f"--from-bundle {packaged.path}" in result.stderr


def test_an_architecture_that_the_module_does_not_know_is_named_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    result = call(ENTRY, "export", "--from-bundle", "--sm", "35", "--out", tmp_path / "b")
    assert (
        result.returncode == 2
        and "cannot build for 3.5; choose from 7.5" in result.stderr
        and list(tmp_path.iterdir()) == []
    )


def test_the_default_sampler_is_stored_by_its_own_name() -> None:
    from cfgdiff.cli.export import _chosen_defaults

    assert _chosen_defaults(sampler="Euler-A", guidance=None) == {"sampler": "euler-a"}
