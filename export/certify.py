"""Certificates for all that a bundle holds: its variants in bundle.json, its TensorRT engines in their sidecars.

A variant's certificate is about its graph, and made on ONNX Runtime's CPU provider; what other engines make of it is found, not kept.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cfgdiff.runtime import Bundle, Engine, open_engine
from cfgdiff.runtime.engine import precisions
from cfgdiff.runtime.engine_tensorrt import TensorRTEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import BuiltEngine, engines_beside, graph_digest, write_sidecar

from .description import store_certificate
from .verify import Reference, verify

Watch = Callable[[int], object]
Certificate = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Something that can be certified: how to open it, what its certificate stands for, and where that is kept."""

    name: str
    kind: str  # the engine's name
    precision: str
    own: bool  # a variant or engine of the bundle's, and not another way to compute one
    sha256: str
    open: Callable[[], Engine]
    store: Callable[[Certificate], None]


def candidates(bundle: Bundle, kind: str | None = None, threads: int | None = None) -> list[Candidate]:
    """The variants on every engine that takes graphs, and the TensorRT engines beside the bundle; of one kind where asked for."""
    found = [
        _of_graph(bundle, engine, precision, threads)
        for engine in ("cpu", "cuda", "openvino")
        for precision in precisions(engine, bundle)
    ]
    found += [_of_engine(bundle, built) for built in engines_beside(bundle.path)]
    return [candidate for candidate in found if kind in (None, candidate.kind)]


def _of_graph(bundle: Bundle, engine: str, precision: str, threads: int | None) -> Candidate:
    def store(certificate: Certificate) -> None:
        if engine == "cpu":
            store_certificate(bundle, precision, certificate)

    digest = graph_digest(bundle.variants.get(precision, bundle.variants["float32"]))  # bfloat16 is float32's graph
    own = precision in bundle.variants
    return Candidate(
        f"{engine} {precision}",
        engine,
        precision,
        own,
        digest,
        partial(open_engine, bundle, engine, precision, threads),
        store,
    )


def _of_engine(bundle: Bundle, built: BuiltEngine) -> Candidate:
    key = built.key
    return Candidate(
        built.path.name, "tensorrt", key.precision, True, built.sha256,
        lambda: TensorRTEngine(bundle, key.precision, uncertified=True, built=built),
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
