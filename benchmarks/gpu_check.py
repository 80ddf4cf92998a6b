"""All that needs a GPU, in one command: build TensorRT engines, certify them, time them, and write a report.

    python -m cfgdiff.benchmarks.gpu_check --out REPORT

Needs an NVIDIA GPU and `pip install '.[tensorrt]'`, and no PyTorch. The tests that need a GPU are run with `python -m pytest -m gpu`.
"""

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import click

from cfgdiff.export.card import card
from cfgdiff.export.certify import candidates, certify, store
from cfgdiff.export.source import from_bundle
from cfgdiff.export.tensorrt import build_engines, find_module, gpu_here, parse_profile
from cfgdiff.export.verify import reference
from cfgdiff.export.write import write_bundle
from cfgdiff.runtime import Bundle, generate, load_bundle, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole

from . import run
from .latency import measure, open_all, parse_batches, table

Say = Callable[[str], None]


def build(source: Path | None, target: Path, profile: tuple[int, int, int], say: Say) -> Bundle:
    """A bundle at `target` with float32 and float16 and an engine of each. Raises `Failure` where an engine cannot be built."""

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
    """Certify the TensorRT engines with n pictures; the failures."""
    against, failures = reference(open_engine(bundle, "cpu", "float32"), bundle, n), []
    for candidate, answer in certify(candidates(bundle, "tensorrt"), bundle, against, lambda count: None):
        reasons = [str(answer)] if isinstance(answer, Failure) else list(answer.failures)
        if not isinstance(answer, Failure):
            store(candidate, bundle, answer)
        say(f"{candidate.name}: {'failed' if reasons else 'certified'}")
        failures += [f"{candidate.name}: {reason}" for reason in reasons]
    return failures


def first_pictures(bundle: Bundle, n: int = 64) -> list[str]:
    """Markdown rows: seconds to open each certified engine and to draw n pictures with it, from files to uint8."""
    lines = ["| engine | open, s | draw, s |", "|---|---|---|"]
    for kind, precision in (("tensorrt", "float16"), ("tensorrt", "float32"), ("cpu", "float32")):
        started = time.perf_counter()
        try:
            engine = open_engine(bundle, kind, precision)
        except Failure as error:
            lines.append(f"| {kind} {precision} | {error} | - |")
            continue
        opened = time.perf_counter()
        drawn = sum(len(pictures) for _, pictures in generate(engine, bundle, [bundle.class_names[0]] * n))
        assert drawn == n
        lines.append(f"| {kind} {precision} | {opened - started:.2f} | {time.perf_counter() - opened:.2f} |")
        engine.close()
    return lines


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="The model. Default: the packaged one.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the bundle with its engines and report.md.")
@click.option("--batch", default="1,64,256", show_default=True, metavar="MIN,OPT,MAX", help="As for cfgdiff export.")
@click.option("--n", default=256, show_default=True, type=click.IntRange(min=8), help="Pictures for the certificates.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1), help="Calls of each engine that are timed.")
def command(bundle: Path | None, out: Path, batch: str, n: int, rounds: int) -> None:
    """Build, certify and time TensorRT engines on this machine's GPU; exit code 1 where one fails its certificate."""

    def say(line: str) -> None:
        click.echo(line, err=True)

    profile, gpu, module = parse_profile(batch), gpu_here(), find_module()
    if gpu is None:
        raise Failure(
            "no GPU found (nvidia-smi knows of none): run this on a machine with an NVIDIA GPU; engines are built without one, too"
        )
    built = build(bundle, out / "bundle", profile, say)
    failures = certify_all(built, n, say)
    with ExitStack() as held:
        engines, _ = open_all(built, held)
        timings = measure(engines, built, sorted({*parse_batches("1,8,64"), profile[2]}), rounds)
    versions = {name: version(name) for name in ("onnxruntime", "numpy", "cuda-bindings")}
    report = [
        "# GPU check", "", f"- GPU: SM {gpu[0]}, driver {gpu[1]}; Python {platform.python_version()}",
        f"- {module.__name__} {module.__version__}",
        *(f"- {name} {found}" for name, found in versions.items()), "",
        "## Certificates", "", *(f"- FAILED: {failure}" for failure in failures), "" if failures else "All engines passed.\n",
        card(load_bundle(built.path)), "", f"## Network calls, {rounds} rounds, all rows guided", "", table(timings), "",
        "## From files to 64 pictures", "", *first_pictures(load_bundle(built.path)), "",
    ]  # fmt: skip
    write_whole(out / "report.md", "\n".join(report).encode())
    say(f"report: {out / 'report.md'}")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    run(command)
