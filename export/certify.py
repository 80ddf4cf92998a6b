"""Certificates for all that a bundle holds: its variants in bundle.json, its TensorRT engines in their sidecars."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cfgdiff.runtime import Bundle, Engine, open_engine
from cfgdiff.runtime.engine_tensorrt import TensorRTEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import BuiltEngine, engines_beside, graph_digest, write_sidecar

from .verify import Reference, verify
from .write import store_certificate

Watch = Callable[[int], object]
Certificate = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Something that can be certified: how to open it, what its certificate stands for, and where that is kept."""

    name: str
    kind: str  # cpu or tensorrt
    sha256: str
    open: Callable[[], Engine]
    store: Callable[[Certificate], None]


def candidates(bundle: Bundle, kind: str | None = None) -> list[Candidate]:
    """The variants, on ONNX Runtime's CPU provider, and the TensorRT engines beside the bundle; of one kind where asked for."""
    found = [
        Candidate(
            f"cpu {name}", "cpu", graph_digest(variant), partial(open_engine, bundle, "cpu", name), partial(store_certificate, bundle, name)
        )
        for name, variant in bundle.variants.items()
    ]
    found += [_of_engine(bundle, built) for built in engines_beside(bundle.path)]
    return [candidate for candidate in found if kind in (None, candidate.kind)]


def _of_engine(bundle: Bundle, built: BuiltEngine) -> Candidate:
    return Candidate(
        built.path.name, "tensorrt", built.sha256, lambda: TensorRTEngine(bundle, built.key.precision, uncertified=True, built=built),
        lambda certificate: write_sidecar(replace(built, certificate=certificate)),
    )  # fmt: skip


def certify(
    chosen: list[Candidate], bundle: Bundle, against: Reference, watch: Watch
) -> "Iterator[tuple[Candidate, Certificate | Failure]]":
    """Verify each in turn; its certificate, not yet stored, or the `Failure` that kept it from being opened here."""
    for candidate in chosen:
        try:
            engine = candidate.open()
        except Failure as error:
            yield candidate, error
            continue
        with closing(engine):
            yield candidate, verify(engine, bundle, against, watch) | {"sha256": candidate.sha256}
