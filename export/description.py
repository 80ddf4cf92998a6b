"""bundle.json, written whole, and what is added to it after an export. It needs no onnx."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.bundle import SpeedRecord
from cfgdiff.runtime.fitted import Fitted


def write_description(folder: Path, tree: dict[str, Any]) -> None:
    """Put bundle.json into a folder, whole."""
    partial = folder / ".bundle.json.partial"
    partial.write_text(json.dumps(tree, indent=1) + "\n")
    partial.replace(folder / "bundle.json")


def store_fitted(bundle: Bundle, found: dict[int, Fitted]) -> None:
    """Put fitted steps into bundle.json, in place of older ones for the same numbers. Raises OSError where it cannot be written."""
    tree = json.loads((bundle.path / "bundle.json").read_bytes())
    kept = tree.get("fitted", {}) | {str(n): asdict(fitted) for n, fitted in found.items()}
    tree["fitted"] = dict(sorted(kept.items(), key=lambda entry: int(entry[0])))
    write_description(bundle.path, tree)


def store_certificate(bundle: Bundle, precision: str, certificate: dict[str, Any]) -> None:
    """Put the certificate of a variant into bundle.json. Raises OSError where the folder cannot be written."""
    tree = json.loads((bundle.path / "bundle.json").read_bytes())
    tree["variants"][precision]["certificate"] = certificate
    write_description(bundle.path, tree)


def store_evaluation(bundle: Bundle, summary: dict[str, Any]) -> None:
    """Put what `cfgdiff eval` found into bundle.json, and the defaults that its sweep chose. Raises OSError where it cannot be written."""
    tree = json.loads((bundle.path / "bundle.json").read_bytes())
    tree["evaluation"] = {key: value for key, value in summary.items() if key != "seconds"}
    if summary["chosen"]:
        tree["defaults"] |= summary["chosen"]
    write_description(bundle.path, tree)


def store_speeds(bundle: Bundle, records: list[SpeedRecord]) -> None:
    """Put what was measured on one machine into bundle.json, in place of older records of such a processor and as many threads.

    Raises OSError where it cannot be written.
    """
    tree, mine = json.loads((bundle.path / "bundle.json").read_bytes()), {(r.instructions, r.threads) for r in records}
    kept = [r for r in tree.get("speeds", []) if (tuple(r["instructions"]), r["threads"]) not in mine]
    tree["speeds"] = kept + [asdict(r) for r in records]
    write_description(bundle.path, tree)
