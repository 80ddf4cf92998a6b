"""Adds to bundle.json after an export. It needs no onnx. All functions raise `Failure` where it cannot be written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import SpeedRecord
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.files import write_json
from cfgdiff.runtime.fitted import Fitted


def store_fitted(bundle: Bundle, steps: dict[int, Fitted]) -> None:
    """Store fitted steps, in place of older ones for the same numbers of evaluations."""
    with _changed(bundle) as tree:
        kept = tree.get("fitted", {}) | {str(n): asdict(fitted) for n, fitted in steps.items()}
        tree["fitted"] = dict(sorted(kept.items(), key=lambda entry: int(entry[0])))


def store_certificate(bundle: Bundle, precision: str, certificate: Certificate) -> None:
    """Store the certificate of a variant."""
    with _changed(bundle) as tree:
        tree["variants"][precision]["certificate"] = certificate.to_json()


def store_evaluation(bundle: Bundle, summary: dict[str, Any]) -> None:
    """Store the report of `cfgdiff eval`, and the defaults that its sweep chose."""
    with _changed(bundle) as tree:
        tree["evaluation"] = {key: value for key, value in summary.items() if key != "seconds"}
        tree["defaults"] |= summary["chosen"] or {}


def store_speeds(bundle: Bundle, records: list[SpeedRecord]) -> None:
    """Store what was measured on one machine, in place of older records of such a processor and as many threads."""
    replaced = {(r.instructions, r.threads) for r in records}
    with _changed(bundle) as tree:
        kept = [r for r in tree.get("speeds", []) if (tuple(r["instructions"]), r["threads"]) not in replaced]
        tree["speeds"] = kept + [asdict(r) for r in records]


@contextmanager
def _changed(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """bundle.json as a tree, written back when the block ends well."""
    tree = json.loads((bundle.path / "bundle.json").read_bytes())
    yield tree
    write_json(bundle.path / "bundle.json", tree)
