"""Writes a bundle: whole or not at all."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfgdiff.runtime import load_bundle, open_engine
from cfgdiff.runtime.bundle import FORMAT_VERSION, Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.checkpoint import LoadedModel
from cfgdiff.trainer.engine_torch import TorchEngine

from .fold import GuidedNetwork
from .graph import build_graph, rounded, save_graph
from .verify import check_graph, example, picture_psnr, relative_error


@dataclass(frozen=True)
class Report:
    """What an export found: relative errors of the prediction, likeness of the pictures, and the bundle's size."""

    graph_error: float  # ONNX Runtime against PyTorch, same weights
    rounding_error: float  # weights as float16 against float32, in PyTorch
    picture_psnr: float  # dB, pictures of the bundle against pictures of PyTorch in float32
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
        tree = _describe(model, name, defaults, hashlib.sha256((temporary / "model.onnx").read_bytes()).hexdigest())
        _write_json(temporary / "bundle.json", tree)
        bundle = load_bundle(temporary)  # as a user will
        psnr = picture_psnr(open_engine(bundle, "cpu"), TorchEngine(model.network, null_class), bundle)
        errors = {"graph": f"{graph_error:.1e}", "float16_weights": f"{rounding:.1e}", "picture_psnr_db": round(psnr, 1)}
        tree["provenance"] = model.provenance | {"errors": errors}
        _write_json(temporary / "bundle.json", tree)
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
    return Report(graph_error, rounding, psnr, size)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1) + "\n")


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
