"""Writes a bundle: whole or not at all."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from cfgdiff.runtime import Bundle, Engine, load_bundle, open_engine
from cfgdiff.runtime.bundle import FORMAT_VERSION, Defaults
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer.checkpoint import LoadedModel
from cfgdiff.trainer.engine_torch import TorchEngine

from .fold import GuidedNetwork
from .graph import build_graph, rounded, save_graph
from .precision import half
from .verify import check_graph, errors_by_level, example, picture_psnr, relative_error


@dataclass(frozen=True)
class Report:
    """What an export found: relative errors of the prediction, likeness of the pictures, and the bundle's size."""

    graph_error: float  # ONNX Runtime against PyTorch, same weights
    rounding_error: float  # weights as float16 against float32, in PyTorch
    picture_psnr: float  # dB, pictures of the bundle against pictures of PyTorch in float32
    variants: dict[str, dict[str, Any]]  # what was measured of each other precision, against float32
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


def write_bundle(model: LoadedModel, target: Path, name: str, defaults: Defaults, force: bool = False, fp16: bool = False) -> Report:
    """Export, check and write, with a float16 variant beside float32 where asked for.

    Raises `Failure`; then, as on Ctrl-C, the target is as it was.
    """
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
        graphs = {"float32": graph} | ({"float16": half(graph)} if fp16 else {})
        variants = {precision: _save_variant(g, temporary, precision) for precision, g in graphs.items()}
        tree = _describe(model, name, defaults, variants)
        _write_json(temporary / "bundle.json", tree)
        bundle = load_bundle(temporary)  # as a user will
        engine = open_engine(bundle, "cpu", "float32")
        psnr = picture_psnr(engine, TorchEngine(model.network, null_class), bundle)
        for precision in graphs.keys() - {"float32"}:
            variants[precision]["measured"] = _measure(open_engine(bundle, "cpu", precision), engine, bundle)
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
    measured = {precision: variant["measured"] for precision, variant in variants.items() if "measured" in variant}
    return Report(graph_error, rounding, psnr, measured, size)


def _save_variant(graph: ModelProto, folder: Path, precision: str) -> dict[str, Any]:
    """Write one graph; what bundle.json says of it."""
    file = "model.onnx" if precision == "float32" else f"model-{precision}.onnx"
    save_graph(graph, folder / file)
    return {"graph": file, "precision": precision, "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest()}}


def _measure(engine: Engine, reference: Engine, bundle: Bundle) -> dict[str, Any]:
    """How far a variant is from float32: by noise level, and in pictures."""
    errors = errors_by_level(engine, reference, bundle)
    return {"relative_error": {level: float(f"{e:.1e}") for level, e in errors.items()},
            "picture_psnr_db": round(picture_psnr(engine, reference, bundle), 1)}  # fmt: skip


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1) + "\n")


def _describe(model: LoadedModel, name: str, defaults: Defaults, variants: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "class_names": model.class_names,
        "image_shape": list(model.image_shape),
        "schedule": asdict(model.schedule),
        "defaults": asdict(defaults),
        "variants": variants,
        "provenance": model.provenance,
    }
