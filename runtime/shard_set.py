"""A set of pictures drawn in shards: which are finished, and how one is made. It knows no flags.

Picture i of the set is picture i of one run of all of them. A shard's batches begin at its first picture, so the same
engine gives the same bytes, whoever makes the shard and whatever was made before.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .bundle import Bundle, load_bundle
from .cascade import stage_engines
from .engine import Engine
from .errors import BadInput, Failure, named, whole_number
from .files import json_bytes
from .generate import sample
from .images import encoded
from .notes import model_digest, model_note, note_of
from .places import open_place, sha256_of, size_of
from .plan import Plan, guidance_of, resolve
from .request import Request, class_labels
from .shard_formats import FORMATS, Header, Item
from .shards import MOST_SHARDS, PREFIX, Manifest, differing, manifest_name, parse_manifest, shard_number, stem

READERS, AT_ONCE = 4, 256  # threads that read shards, and manifests read in one request
PER_PICTURE = ("class", "index", "seed", "guidance")  # entries of a note


@dataclass(frozen=True)
class Recipe:
    """What a set is made of, in values that can be sent to other machines.

    Attributes:
        dest: a folder, absolute, or a URL.
        model: a packaged model's name, or a bundle's folder.
        request: its classes go round, and so does its guidance, if it has several; it has one seed, and no indices.
        n: pictures in the set.
        size: pictures in each shard but the last.
        format: a name in `FORMATS`.
        kind: of the pictures: png or webp.
        height: of the pictures of a cascade: as many stages as it needs; None: all.
    """

    dest: str
    model: str
    request: Request
    n: int
    size: int
    format: str = "tar"
    kind: str = "png"
    height: int | None = None


@dataclass
class Survey:
    """What is there of the shards that were asked for, by their numbers.

    Attributes:
        finished: those that need nothing.
        missing: those that are to be made, damaged ones among them.
        damaged: what is wrong with these.
        other: a manifest of the set, whose engine and precision are the set's; None where there is none yet.
    """

    finished: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    other: Manifest | None = None


class ShardSet:
    """The set of a recipe.

    Attributes:
        count: shards in it.

    Raises:
        BadInput: naming the parameter.
        Failure: the bundle cannot be read, or a package is missing.
    """

    def __init__(self, recipe: Recipe, bundle: Bundle | None = None) -> None:
        self.count = -(-whole_number("n", recipe.n) // whole_number("shard_size", recipe.size))
        if self.count > MOST_SHARDS:
            expected = f"expected {-(-recipe.n // MOST_SHARDS)} or more, for at most {MOST_SHARDS} shards"
            raise BadInput(f"shard_size: {expected}, found {recipe.size}")
        named("shard_format", "format", recipe.format, FORMATS)
        bundle = bundle or load_bundle(recipe.model)
        self.recipe, self.bundle = recipe, bundle if recipe.height is None else bundle.up_to(recipe.height)
        self.place = open_place(recipe.dest)
        request = recipe.request
        guidance_of(self.bundle, request)  # checks all w, also those of more pictures than there are
        self._labels = class_labels(self.bundle, request.classes)  # in turn, as the weights
        weights = None if request.guidance is None else np.atleast_1d(np.asarray(request.guidance, np.float64))
        turn = np.arange(min(recipe.n, max(len(self._labels), 1 if weights is None else len(weights))))
        guidance = None if weights is None else weights[turn % len(weights)].tolist()
        classes = self._labels[turn % len(self._labels)]
        self._plan = resolve(self.bundle, replace(request, classes=classes, guidance=guidance, indices=turn))
        self._weights = self._plan.weights[:1] if weights is None else weights

    @property
    def plan(self) -> Plan:
        """The plan of the first pictures, for settings that all have."""
        return self._plan

    @property
    def weights(self) -> list[float]:
        """w, in turn."""
        return [float(w) for w in self._weights]

    def file(self, shard: int) -> str:
        """The name of a shard's file or folder."""
        return f"{stem(shard)}{FORMATS[self.recipe.format].suffix}"

    def first(self, shard: int) -> int:
        """The index of a shard's first picture; of the number after the last shard, how many pictures there are."""
        return min(shard * self.recipe.size, self.recipe.n)

    def pictures(self, shards: Sequence[int]) -> int:
        """How many these shards hold."""
        return sum(self.first(shard + 1) - self.first(shard) for shard in shards)

    def plan_of(self, first: int, stop: int) -> Plan:
        """The plan of the pictures first .. stop - 1: what one run of all of them would draw there."""
        indices, n = np.arange(first, stop), stop - first
        each: dict[str, Any] = {
            "labels": self._labels[indices % len(self._labels)], "indices": indices.astype(np.uint64),
            "seeds": np.broadcast_to(self._plan.seeds[:1], n),
        }  # fmt: skip
        stages = [replace(stage, low=_as_many(stage.low, n), weights=_as_many(stage.weights, n), **each)
                  for stage in self._plan.stages]  # fmt: skip
        weights = self._weights[indices % len(self._weights)]
        return replace(self._plan, weights=weights, stages=tuple(stages), **each)

    def survey(self, shards: Sequence[int], precision: str | None = None, read: bool = True,
               checked: Callable[[int], object] = lambda shards: None) -> Survey:  # fmt: skip
        """Which of these shards are finished, and what is wrong with the others that are there.

        Args:
            precision: that the engine would compute in; None: any that the set has.
            read: all of each shard, and compare its sha256; else its size alone.
            checked: called with how many more shards were looked at.

        Raises:
            BadInput: the place holds shards of another set; it names what differs.
        """
        names = set(self.place.names())
        self.place.tidy(f"{PREFIX}*")
        found = Survey(other=self._check_others(sorted(filter(shard_number, names)), precision))
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(shards), AT_ONCE):
                part = shards[first : first + AT_ONCE]
                texts = self.place.read_all([name for name in map(manifest_name, part) if name in names])
                problems = pool.map(partial(self._problem, texts, precision, read), part)
                for shard, problem in zip(part, problems, strict=True):
                    (found.finished if problem is None else found.missing).append(shard)
                    if problem:
                        found.damaged[shard] = problem
                    checked(1)
        return found

    def _check_others(self, manifests: list[str], precision: str | None) -> Manifest | None:
        """The first manifest of the set, if any. Raises `BadInput` where it, or the last one, is of another set."""
        read = []
        for name, text in self.place.read_all(sorted({*manifests[:1], *manifests[-1:]})).items():
            with suppress(Failure):  # a damaged one
                read.append(parse_manifest(text, self.place.at(name)))
        for manifest in read:
            self._check(manifest, precision)
        if read and (last := read[-1]).first + last.count > self.recipe.n:
            holds = f"{self.place} holds {last.first + last.count} pictures or more, found {self.recipe.n}"
            raise BadInput(f"n: {holds}; ask for as many, or for another place with `out`")
        return read[0] if read else None

    def _check(self, manifest: Manifest, precision: str | None) -> None:
        made_by = [(engine, precision or own) for engine, own in manifest.made_by]
        expected = self._manifest(manifest.shard, made_by)
        if others := differing(manifest, expected, "now"):
            asked = "ask for the same, or for another place"
            raise BadInput(f"out: {self.place} holds pictures made with {', '.join(others)}; {asked}")

    def _problem(self, texts: dict[str, bytes], precision: str | None, read: bool, shard: int) -> str | None:
        """None where a shard is finished; what is wrong with it; empty where it has no manifest."""
        if (text := texts.get(name := manifest_name(shard))) is None:
            return ""
        try:
            manifest = parse_manifest(text, self.place.at(name))
        except Failure as error:
            return str(error).removeprefix(f"{self.place.at(name)}: ").partition(";")[0]
        self._check(manifest, precision)
        wanted, size = self.first(shard + 1) - self.first(shard), self.place.size(manifest.file)
        if (manifest.shard, manifest.count) != (shard, wanted):
            return f"holds {manifest.count} of {wanted} pictures"
        if size != manifest.bytes:
            return "is missing" if size is None else f"has {size} bytes, and {manifest.bytes} in its manifest"
        if read:
            with self.place.local(manifest.file) as path:
                if sha256_of(path) != manifest.sha256:
                    return "has another sha256 than in its manifest"
        return None

    def is_finished(self, shard: int) -> bool:
        """Whether another process has made a shard in the meantime, by its size."""
        texts = self.place.read_all([manifest_name(shard)])
        return bool(texts and self.place.names()) and self._problem(texts, None, False, shard) is None

    def make(self, shard: int, engine: Engine, drawn: Callable[[int], object] = lambda pictures: None) -> Manifest:
        """Draw a shard, write it, and then its manifest.

        Args:
            drawn: called with how many more pictures were drawn.

        Raises:
            Failure: it cannot be written, or drawn.
        """
        engines = (engine, *stage_engines(engine, self._plan.stages))
        manifest = self._manifest(shard, [(each.name, each.precision) for each in engines])
        with self.place.staging(manifest.file) as path:
            header = Header(manifest.class_names, manifest.kind, manifest.seed)
            FORMATS[manifest.format].write(path, header, self._items(manifest, engine, drawn))
            size = size_of(path)
            assert size is not None
            manifest = replace(manifest, bytes=size, sha256=sha256_of(path))
        self.place.write(manifest_name(shard), json_bytes(manifest.to_json()))
        return manifest

    def _items(self, manifest: Manifest, engine: Engine, drawn: Callable[[int], object]) -> Iterator[Item]:
        plan, model = self.plan_of(manifest.first, manifest.first + manifest.count), model_note(self.bundle, engine)
        for first, pictures in sample(engine, plan):
            for i, picture in enumerate(pictures, first):
                note = note_of(plan, i) | model
                yield Item(manifest.first + i, int(plan.labels[i]), note, encoded(picture, manifest.kind, note))
            drawn(len(pictures))

    def _manifest(self, shard: int, made_by: Sequence[tuple[str, str]]) -> Manifest:
        """That of a shard before it is drawn, by these engines and precisions, one for each network."""
        recipe, names, first = self.recipe, self.bundle.class_names, self.first(shard)
        c, h, w = self.bundle.picture_shape
        settings = {k: v for k, v in note_of(self._plan, 0).items() if k not in PER_PICTURE}
        networks: list[dict[str, Any]] = [
            {"model_sha256": _digest(model, precision), "engine": engine, "precision": precision}
            for model, (engine, precision) in zip(self.bundle.models, made_by, strict=False)
        ]
        return Manifest(
            shard, first, self.first(shard + 1) - first, recipe.size, self.file(shard), 0, "", recipe.format,
            recipe.kind, tuple(names), tuple(names[k] for k in self._labels), tuple(self.weights),
            int(self._plan.seeds[0]), json.loads(json.dumps(settings)), recipe.request.batch, (h, w, c),
            self.bundle.name, **networks[0], stage_models=tuple(networks[1:]),
        )  # fmt: skip


def _digest(model: Bundle, precision: str) -> str:
    """That of the graph; empty where the model has no such precision, so what has it is of another model."""
    try:
        return model_digest(model, precision)
    except BadInput:
        return ""


def _as_many(array: np.ndarray | None, n: int) -> np.ndarray:
    """The first entry of an array n times, without memory: what a cascade's stages take alike for all pictures."""
    assert array is not None
    return np.broadcast_to(array[:1], (n, *array.shape[1:]))
