"""Writes a bundle: whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from cfgdiff.runtime import Bundle, load_bundle, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.sidecar import engines_beside, graph_digest, sidecar_of

from .card import write_card
from .description import write_description
from .edit import save_graph, with_description
from .precision import half
from .quantise import guided_trajectories, int8
from .source import Source
from .verify import reference, verify

PICTURES = 16  # compared at export; cfgdiff verify takes more


@dataclass(frozen=True)
class Report:
    """What an export found and made."""

    bundle: Bundle
    errors: dict[str, Any]  # what the source compared: the graph and its pictures with PyTorch's
    megabytes: float
    build_error: Failure | None  # why there are no engines, where some were asked for


def check_target(target: Path, force: bool) -> None:
    """Raises `Failure` where `target` cannot become a bundle."""
    if target.exists() and not (target / "bundle.json").is_file():
        raise Failure(f"--out {target}: exists and is no bundle; choose another folder")
    if target.exists() and not force:
        raise Failure(f"--out {target}: a bundle is already there; --force replaces it")
    existing = next(p for p in target.absolute().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Failure(f"--out {target}: cannot write in {existing}; choose another place")


def write_bundle(source: Source, target: Path, precisions: tuple[str, ...] = (), force: bool = False,
                 build: Callable[[Bundle], object] | None = None, say: Callable[[str], object] = lambda line: None) -> Report:  # fmt: skip
    """Write float32 and `precisions` (float16, int8), each with what was found of it, the engines and the model card.

    Args:
        build: puts engines beside the bundle it is given. Where it raises `Failure`, the bundle is written without them.
        say: gets a line for every stage.

    Raises `Failure`; then, as on Ctrl-C, the target is as it was.
    """
    check_target(target, force)
    with _replaced(target) as folder:
        tree = source.description | {"variants": {}}
        _add_variant(tree, folder, source.graph, "float32")
        bundle = load_bundle(folder)  # as a user will
        engine = open_engine(bundle, "cpu", "float32")
        compared = source.compare(engine, bundle)
        tree["provenance"] = tree["provenance"] | compared
        for precision in precisions:
            say(f"{precision}: deriving the graph")
            graph = half(source.graph) if precision == "float16" else int8(source.graph, guided_trajectories(engine, bundle))
            _add_variant(tree, folder, graph, precision)
        bundle = load_bundle(folder)
        against = reference(engine, bundle, PICTURES)
        for precision, variant in tree["variants"].items():
            say(f"{precision}: comparing {PICTURES} pictures")
            tested = engine if precision == "float32" else open_engine(bundle, "cpu", precision)
            variant["certificate"] = verify(tested, bundle, against) | {"sha256": graph_digest(bundle.variant(precision))}
        write_description(folder, tree)
        bundle, build_error = load_bundle(folder), None
        _keep_engines(target, bundle)
        try:
            if build is not None:
                build(bundle)
        except Failure as error:
            build_error = error
        write_card(bundle, engine)
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    return Report(load_bundle(target), compared.get("errors", {}), size, build_error)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well."""
    temporary = target.parent / f".{target.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        raise Failure(f"--out {target}: cannot write the bundle ({error.strerror or error}); nothing was left behind") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _add_variant(tree: dict[str, Any], folder: Path, graph: ModelProto, precision: str) -> None:
    """Write one graph, and bundle.json with what it says of it."""
    file = "model.onnx" if precision == "float32" else f"model-{precision}.onnx"
    save_graph(with_description(graph, tree, precision), folder / file)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    tree["variants"][precision] = {"graph": file, "precision": precision, "files": {file: digest}}
    write_description(folder, tree)


def _keep_engines(old: Path, bundle: Bundle) -> None:
    """Engines of the bundle that is being replaced are kept where their graph is still the same."""
    if not (old / "bundle.json").is_file():
        return
    digests = {graph_digest(variant) for variant in bundle.variants.values()}
    for engine in engines_beside(old):
        if engine.key.graph in digests and engine.path.is_file():
            shutil.copy2(engine.path, bundle.path)
            shutil.copy2(sidecar_of(engine.path), bundle.path)
