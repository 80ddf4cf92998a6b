"""Certificates for everything that a bundle holds: its variants in bundle.json, its built engines in their sidecars.

A variant's certificate is made by one engine (`EngineEntry.certifies`); verdicts of others are shown, not stored.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.engines import ENGINES, Target, targets
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import write_sidecar

from .compare import Watch
from .description import store_certificate
from .verify import Reference, verify


def candidates(bundle: Bundle, engine: str | None = None, threads: int | None = None) -> list[Target]:
    """What all engines, or one, can open of a bundle."""
    return [t for name in sorted(ENGINES) if engine in (None, name) for t in targets(name, bundle, threads)]


def certify(
    chosen: list[Target], bundle: Bundle, against: Reference, watch: Watch
) -> Iterator[tuple[Target, Certificate | Failure]]:
    """Verify each in turn: its certificate, not yet stored, or the `Failure` that kept it from opening here."""
    for target in chosen:
        try:
            engine = target.open(True)
        except Failure as error:
            yield target, error
            continue
        with closing(engine):
            yield target, verify(engine, bundle, against, watch, target.sha256)


def store(target: Target, bundle: Bundle, certificate: Certificate) -> None:
    """Store a certificate where the runtime looks for it. Raises `Failure` where that cannot be written."""
    if target.built is not None:
        write_sidecar(replace(target.built, certificate=certificate))
    elif ENGINES[target.engine].certifies:
        store_certificate(bundle, target.precision, certificate)
