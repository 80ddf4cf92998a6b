"""`cfgdiff bench gpu`: all that needs a GPU. Builds TensorRT engines, certifies and times them, and writes a report.

Needs an NVIDIA GPU and `pip install '.[tensorrt]'`, and no PyTorch. The tests that need a GPU are run with `python -m
pytest -m gpu`.
"""

import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from cfgdiff.export.card import card
from cfgdiff.export.certify import candidates, certify, store
from cfgdiff.export.markdown import table
from cfgdiff.export.source import from_bundle
from cfgdiff.export.tensorrt import build_engines, find_module, gpu_here, parse_profile
from cfgdiff.export.verify import reference
from cfgdiff.export.write import write_bundle
from cfgdiff.runtime import Bundle, generate, load_bundle, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole

from .calls import call_rows, call_table, open_all

Say = Callable[[str], None]


def build(source: Path | None, target: Path, profile: tuple[int, int, int], say: Say) -> Bundle:
    """A bundle at `target` with float32, float16 and an engine of each. Raises `Failure` where an engine cannot be
    built."""

    def engines(bundle: Bundle) -> None:
        started = time.perf_counter()
        for built in build_engines(bundle, profile, None, lambda phase, done, total: None):
            say(f"built {built.path.name} in {time.perf_counter() - started:.1f} s")
            started = time.perf_counter()

    report = write_bundle(from_bundle(source, target.resolve().name, {}), target, ("float16",), True, engines, say)
    if report.build_error is not None:
        raise report.build_error
    return report.bundle


def certify_all(bundle: Bundle, n: int, say: Say) -> list[str]:
    """Certify the TensorRT engines with n pictures. Returns the failures."""
    against, failures = reference(open_engine(bundle, "cpu", "float32"), bundle, n), []
    for candidate, answer in certify(candidates(bundle, "tensorrt"), bundle, against, lambda count: None):
        reasons = [str(answer)] if isinstance(answer, Failure) else list(answer.failures)
        if not isinstance(answer, Failure):
            store(candidate, bundle, answer)
        say(f"{candidate.name}: {'failed' if reasons else 'certified'}")
        failures += [f"{candidate.name}: {reason}" for reason in reasons]
    return failures


def first_pictures(bundle: Bundle, n: int = 64) -> str:
    """Markdown: seconds to open each certified engine and to draw n pictures with it, from files to uint8."""
    rows = list[list[str]]()
    for kind, precision in (("tensorrt", "float16"), ("tensorrt", "float32"), ("cpu", "float32")):
        started = time.perf_counter()
        try:
            engine = open_engine(bundle, kind, precision)
        except Failure as error:
            rows.append([f"{kind} {precision}", str(error), "-"])
            continue
        opened = time.perf_counter()
        drawn = sum(len(pictures) for _, pictures in generate(engine, bundle, [bundle.class_names[0]] * n))
        assert drawn == n
        rows.append([f"{kind} {precision}", f"{opened - started:.2f}", f"{time.perf_counter() - opened:.2f}"])
        engine.close()
    return table(["engine", "open, s", "draw, s"], rows)


def check(source: Path | None, out: Path, batch: str, n: int, rounds: int, say: Say) -> list[str]:
    """Build, certify and time engines of the model at `source`; the bundle and report.md go into `out`. The failed
    certificates.

    Raises:
        Failure: there is no GPU, or an engine cannot be built.
    """
    profile, gpu, module = parse_profile(batch), gpu_here(), find_module()
    if gpu is None:
        raise Failure(
            "no GPU found by nvidia-smi: run this on a machine with an NVIDIA GPU (building engines alone needs none)"
        )
    built = build(source, out / "bundle", profile, say)
    failures = certify_all(built, n, say)
    with ExitStack() as stack:
        engines, _ = open_all(built, stack)
        timings = call_table(call_rows(engines, built, sorted({1, 8, 64, profile[2]}), rounds, {}))
    built = load_bundle(built.path)  # with its certificates
    parts = [
        "# GPU check",
        "\n".join([f"- GPU: SM {gpu[0]}, driver {gpu[1]}; Python {platform.python_version()}",
                   f"- {module.__name__} {module.__version__}",
                   *(f"- {name} {version(name)}" for name in ("onnxruntime", "numpy", "cuda-bindings"))]),
        "## Certificates", "\n".join(f"- FAILED: {failure}" for failure in failures) or "All engines passed.",
        card(built),
        f"## Network calls, {rounds} rounds", timings, "## From files to 64 pictures", first_pictures(built),
    ]  # fmt: skip
    write_whole(out / "report.md", ("\n\n".join(parts) + "\n").encode())
    say(f"report: {out / 'report.md'}")
    return failures


if __name__ == "__main__":  # the way to call it before `cfgdiff bench gpu`
    sys.argv[1:1] = ["bench", "gpu"]
    import_module("cfgdiff.cli.main").main()  # by name: benchmarks stand below cli, and import nothing of it
