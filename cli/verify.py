"""`cfgdiff verify` certifies bundles. Heavy packages are imported inside the command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .train import PATH

if TYPE_CHECKING:
    from cfgdiff.runtime import Bundle
    from cfgdiff.runtime.certificate import Certificate


def say(line: str) -> None:
    """A line for people, on standard error."""
    click.echo(line, err=True)


def summary(certificate: "Certificate", reference: bool = False) -> str:
    """A certificate in one line; `reference`: of the engine and precision that all others are compared with."""
    if not certificate.passed:
        return "FAILED: " + "; ".join(certificate.failures)
    if reference:
        return (
            "passed; its rows agree with each other and with the guidance equation, and the others are compared with it"
        )
    level, error = max(certificate.prediction.items(), key=lambda entry: entry[1])
    levels = f"prediction within {error:.1e} of float32 (at ln(sigma / alpha) = {level}), "
    levels += f"x0 within {max(certificate.x0.values()):.1e}"
    return (
        f"passed; {levels}, {certificate.pictures} pictures {certificate.psnr_db} dB, features {certificate.features}"
    )


@click.command(
    epilog="""\b
Examples:
  cfgdiff verify exported/small
  cfgdiff verify exported/small --engine tensorrt
  cfgdiff verify --n 32 --no-store

Exit code 1 where anything fails, or where nothing could be verified."""
)
@click.argument("bundle", type=PATH, required=False)
@click.option(
    "--engine", metavar="NAME", help="Verify this one of `cfgdiff engines` alone. Default: all that work here."
)
@click.option("--n", default=256, show_default=True, type=click.IntRange(min=8),
              help="Pictures to compare with float32's.")  # fmt: skip
@click.option("--store/--no-store", default=True, show_default=True,
              help="Store the certificates of variants and built engines in the bundle. "
                   "Other engines' verdicts are only shown.")  # fmt: skip
def verify(bundle: Path | None, engine: str | None, n: int, store: bool) -> None:
    """Compare all variants and engines of a bundle with float32 on ONNX Runtime, and certify them.

    Rows must not depend on their neighbours and guidance must be uncond + w (cond - uncond); predictions must be
    float32's at every noise level; and pictures from the same noise must be float32's in decibels and in features.
    """
    from cfgdiff.runtime import load_bundle
    from cfgdiff.runtime.engines import ENGINES
    from cfgdiff.runtime.errors import named

    engine = engine and named("engine", "engine", engine, ENGINES)
    if not all([_verified(model, engine, n, store) for model in load_bundle(bundle).models]):
        raise SystemExit(1)


def _verified(model: "Bundle", engine: str | None, n: int, store: bool) -> bool:
    """Whether all that could be verified of one network passed, and something could."""
    from cfgdiff.export import certify
    from cfgdiff.export.verify import reference
    from cfgdiff.runtime import open_engine
    from cfgdiff.runtime.engines import ENGINES, REFERENCE
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.sidecar import build_command

    where = f"{model.path.name}, " if model.stage else ""
    chosen = certify.candidates(model, engine)
    if engine and not chosen:
        how = f"build one with: {build_command(model.path)}"
        raise Failure(f"{model.path}: has no {ENGINES[engine].title} engine; {how}")
    verdicts, skipped, length = list[bool](), dict[str, list[str]](), n * (1 + len(chosen))
    with click.progressbar(length=length, label="drawing", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        against = reference(open_engine(model, *REFERENCE), model, n, bar.update)
        for target, certificate in certify.certify(chosen, model, against, bar.update):
            if isinstance(certificate, Failure):
                skipped.setdefault(str(certificate), []).append(target.name)
                continue
            if needed := target.own or engine == target.engine:  # others are used only where they are named
                verdicts.append(certificate.passed)
            text = summary(certificate, (target.engine, target.precision) == REFERENCE)
            say(
                f"{where}{target.name}: {text}" + ("" if needed or certificate.passed else "; it is taken by name only")
            )
            if store:
                certify.store(target, model, certificate)
    for reason, names in skipped.items():
        say(f"{where}{', '.join(names)}: not verified: {reason}")
    return bool(verdicts) and all(verdicts)
