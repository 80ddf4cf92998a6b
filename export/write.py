"""Writes a bundle: whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnx import ModelProto

from cfgdiff.runtime import Bundle, Engine, load_bundle, open_engine
from cfgdiff.runtime.bundle import DAMAGE, STAGED_VERSION
from cfgdiff.runtime.engines import REFERENCE
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import json_bytes, replace_folder, restore_folder
from cfgdiff.runtime.sidecar import SUFFIX, engines_beside, graph_digest, sidecar_of

from .card import SAMPLES, write_card
from .edit import save_graph, with_description
from .precisions import PRECISIONS
from .quantise import guided_trajectories
from .source import Source
from .verify import reference, verify

STAGE = "stage-"  # and its number: the folder of a super-resolution stage in a cascade's bundle
PICTURES = 16  # compared at export; cfgdiff verify takes more
Say = Callable[[str], object]


@dataclass(frozen=True)
class Report:
    """The result of an export."""

    bundle: Bundle
    errors: dict[str, Any]
    """Of the graph and its pictures against PyTorch's, as the source compared them."""
    megabytes: float
    build_error: Failure | None
    """Why engines could not be built."""


def check_target(target: Path, force: bool) -> None:
    """Raises `Failure` where `target` cannot become a bundle."""
    with suppress(OSError):  # writing will fail, too, and say why
        restore_folder(target)
    if target.exists() and not (target / "bundle.json").is_file():
        raise Failure(f"{target}: exists and is no bundle; choose another folder")
    if target.exists() and not force:
        raise Failure(f"{target}: a bundle is already there; `force` replaces it")
    if target.exists() and (others := _others(target)):
        names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        problem = f"`force` would delete what is not the bundle's ({names})"
        raise Failure(f"{target}: {problem}; move it, or choose another folder")
    existing = next(p for p in target.absolute().parents if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise Failure(f"{target}: cannot write in {existing}; choose another place")


def write_bundle(
    source: Source,
    target: Path,
    precisions: tuple[str, ...] = (),
    force: bool = False,
    build: Callable[[Bundle], object] | None = None,
    say: Say = lambda line: None,
    stages: Sequence[Source] = (),
) -> Report:
    """Write float32 and `precisions` (float16, int8), each with its certificate, the engines and the model card.

    Args:
        stages: the super-resolution stages of a cascade, each of which becomes a bundle in a folder of this one.
        build: puts engines beside the bundle. Where it raises `Failure`, the bundle is written without them.
        say: receives a line for every stage.

    Raises:
        Failure: then, as on Ctrl-C, the target is as it was.
    """
    check_target(target, force)
    with _replaced(target) as folder:
        compared, build_error = _fill(folder, target, source, precisions, build, say)
        names = [f"{STAGE}{place}" for place in range(1, 1 + len(stages))]
        for name, stage in zip(names, stages, strict=True):
            say(f"{name}:")
            (folder / name).mkdir()
            build_error = _fill(folder / name, target / name, stage, precisions, build, say)[1] or build_error
        if stages:
            tree = json.loads((folder / "bundle.json").read_bytes())
            _describe(tree | {"format_version": STAGED_VERSION, "stages": names}, folder)
            bundle = load_bundle(folder)
            with open_engine(bundle, *REFERENCE) as engine:
                write_card(bundle, engine)
    size = sum(file.stat().st_size for file in target.rglob("*")) / 1e6
    return Report(load_bundle(target), compared.get("errors", {}), size, build_error)


def _fill(
    folder: Path,
    target: Path,
    source: Source,
    precisions: tuple[str, ...],
    build: Callable[[Bundle], object] | None,
    say: Say,
) -> tuple[dict[str, Any], Failure | None]:
    """Write one network's bundle into `folder`, which takes the place of `target`.

    Returns:
        what the source compared, and why engines could not be built.
    """
    tree = source.description | {"variants": {}}
    _add_variant(tree, folder, source.graph, "float32")
    bundle = load_bundle(folder)  # as a user will
    engine = open_engine(bundle, *REFERENCE)
    compared = source.compare(engine, bundle)
    tree["provenance"] = tree["provenance"] | compared
    for precision in precisions:
        say(f"{precision}: deriving the graph")
        derive = PRECISIONS[precision].derive
        assert derive is not None
        _add_variant(tree, folder, derive(source.graph, partial(guided_trajectories, engine, bundle)), precision)
    _certify_variants(tree, folder, engine, say)
    bundle, build_error = load_bundle(folder), None
    _keep_engines(target, bundle)
    try:
        if build is not None:
            build(bundle)
    except Failure as error:
        build_error = error
    write_card(bundle, engine)
    return compared, build_error


def _certify_variants(tree: dict[str, Any], folder: Path, engine: Engine, say: Say) -> None:
    """Compare every variant with `engine`, float32's, and add the certificates to bundle.json."""
    bundle = load_bundle(folder)
    against = reference(engine, bundle, PICTURES)
    for precision, variant in bundle.variants.items():
        say(f"{precision}: comparing {PICTURES} pictures")
        tested = engine if precision == "float32" else open_engine(bundle, REFERENCE[0], precision)
        certificate = verify(tested, bundle, against, sha256=graph_digest(variant))
        tree["variants"][precision]["certificate"] = certificate.to_json()
    _describe(tree, folder)


def _others(folder: Path) -> list[str]:
    """The files in a bundle's folder that are not the bundle's."""
    try:
        tree = json.loads((folder / "bundle.json").read_bytes())
        listed = {str(name) for variant in tree["variants"].values() for name in variant["files"]}
        stages = [str(name) for name in tree.get("stages", ()) if (folder / str(name)).is_dir()]
    except (*DAMAGE, OSError, RecursionError):  # damaged, which may be why it is replaced
        listed, stages = {_file_of(precision) for precision in PRECISIONS}, []
    own = {"bundle.json", "README.md", SAMPLES, *listed, *stages}
    others = [
        path.name
        for path in folder.iterdir()
        if path.name not in own and SUFFIX not in path.suffixes[-2:] and not path.match(".*.partial")
    ]
    return sorted(others + [f"{name}/{other}" for name in stages for other in _others(folder / name)])


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well."""
    try:
        with replace_folder(target) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{target}: cannot write the bundle ({reason}); nothing was left behind") from None


def _add_variant(tree: dict[str, Any], folder: Path, graph: ModelProto, precision: str) -> None:
    """Write one graph, and bundle.json with it."""
    file = _file_of(precision)
    save_graph(with_description(graph, tree, precision), folder / file)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    tree["variants"][precision] = {"graph": file, "precision": precision, "files": {file: digest}}
    _describe(tree, folder)


def _file_of(precision: str) -> str:
    return "model.onnx" if precision == "float32" else f"model-{precision}.onnx"


def _describe(tree: dict[str, Any], folder: Path) -> None:
    """Write bundle.json; the folder is replaced as a whole later."""
    (folder / "bundle.json").write_bytes(json_bytes(tree))


def _keep_engines(old: Path, bundle: Bundle) -> None:
    """Engines of the bundle that is being replaced are kept where their graph is still the same."""
    if not (old / "bundle.json").is_file():
        return
    digests = {graph_digest(variant) for variant in bundle.variants.values()}
    for engine in engines_beside(old):
        if engine.key.graph in digests and engine.path.is_file():
            shutil.copy2(engine.path, bundle.path)
            shutil.copy2(sidecar_of(engine.path), bundle.path)
