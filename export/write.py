"""Writes a bundle: whole or not at all."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfgdiff.runtime.bundle import FORMAT_VERSION, Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.checkpoint import LoadedModel

from .fold import GuidedNetwork
from .graph import build_graph, rounded, save_graph
from .verify import check_graph, example, relative_error


@dataclass(frozen=True)
class Report:
    """What an export found: relative errors of the prediction, and the bundle's size."""

    graph_error: float
    rounding_error: float
    megabytes: float


def check_target(target: Path, force: bool) -> None:
    """Raises `Failure` where `target` cannot become a bundle."""
    if target.exists() and not (target / "bundle.json").is_file():
        raise Failure(f"--out {target}: exists and is no bundle; choose another folder")
    if target.exists() and not force:
        raise Failure(f"--out {target}: a bundle is already there; --force replaces it")
    existing = next(p for p in target.absolute().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Failure(f"--out {target}: cannot write in {existing}; choose another place")


def write_bundle(model: LoadedModel, target: Path, name: str, defaults: Defaults, force: bool = False) -> Report:
    """Export, check and write. Raises `Failure`; then, as on Ctrl-C, the target is as it was."""
    check_target(target, force)
    null_class = len(model.class_names)
    stored = rounded(model.network)
    graph = build_graph(stored, null_class, model.image_shape)
    graph_error = check_graph(graph.SerializeToString(), stored, null_class, model.image_shape)
    rounding = relative_error(
        GuidedNetwork(model.network, null_class), GuidedNetwork(stored, null_class), example(64, 10, model.image_shape, null_class)
    )
    temporary = target.parent / f".{target.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir(parents=True)
        save_graph(graph, temporary / "model.onnx")
        digest = hashlib.sha256((temporary / "model.onnx").read_bytes()).hexdigest()
        tree = _describe(model, name, defaults, digest) | {"errors": {"graph": graph_error, "float16_weights": rounding}}
        (temporary / "bundle.json").write_text(json.dumps(tree, indent=1) + "\n")
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        size = sum(file.stat().st_size for file in temporary.iterdir()) / 1e6
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        raise Failure(f"--out {target}: cannot write the bundle ({error.strerror or error}); nothing was left behind") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Report(graph_error, rounding, size)


def _describe(model: LoadedModel, name: str, defaults: Defaults, digest: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "class_names": model.class_names,
        "image_shape": list(model.image_shape),
        "schedule": asdict(model.schedule),
        "defaults": asdict(defaults),
        "variants": {"float32": {"graph": "model.onnx", "precision": "float32", "files": {"model.onnx": digest}}},
        "provenance": model.provenance,
    }
