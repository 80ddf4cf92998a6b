"""Writes a bundle: whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from cfgdiff.runtime import Bundle, load_bundle, open_engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.folders import replace_folder, restore_folder
from cfgdiff.runtime.sidecar import SUFFIX, engines_beside, graph_digest, sidecar_of

from .card import SAMPLES, write_card
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
    with suppress(OSError):  # writing will fail, too, and say why
        restore_folder(target)
    if target.exists() and not (target / "bundle.json").is_file():
        raise Failure(f"--out {target}: exists and is no bundle; choose another folder")
    if target.exists() and not force:
        raise Failure(f"--out {target}: a bundle is already there; --force replaces it")
    if target.exists() and (others := _others(target)):
        names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise Failure(
            f"--out {target}: --force would delete what is not the bundle's ({names}); move it, or choose another folder"
        )
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
            graph = (
                half(source.graph)
                if precision == "float16"
                else int8(source.graph, guided_trajectories(engine, bundle))
            )
            _add_variant(tree, folder, graph, precision)
        bundle = load_bundle(folder)
        against = reference(engine, bundle, PICTURES)
        for precision, variant in tree["variants"].items():
            say(f"{precision}: comparing {PICTURES} pictures")
            tested = engine if precision == "float32" else open_engine(bundle, "cpu", precision)
            variant["certificate"] = verify(tested, bundle, against) | {
                "sha256": graph_digest(bundle.variant(precision))
            }
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


def _others(folder: Path) -> list[str]:
    """What lies in a bundle's folder and is not the bundle's."""
    try:
        variants = json.loads((folder / "bundle.json").read_bytes())["variants"].values()
        listed = {str(name) for variant in variants for name in variant["files"]}
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
    ):  # damaged, and to be replaced for that
        listed = {"model.onnx", "model-float16.onnx", "model-int8.onnx"}
    own = {"bundle.json", ".bundle.json.partial", "README.md", SAMPLES, *listed}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in own and SUFFIX not in path.suffixes[-2:] and not path.match(".*.partial")
    )


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well."""
    try:
        with replace_folder(target) as folder:
            yield folder
    except OSError as error:
        raise Failure(
            f"--out {target}: cannot write the bundle ({error.strerror or error}); nothing was left behind"
        ) from None


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
