"""Samples on disk, in blocks of 256 picture numbers, with their features and scores: a block that is there is not drawn
again.

A block depends on its number, the settings and the engine, and on nothing else: blocks drawn by several processes or
machines make the same set as a single run, once they lie in one folder.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cfgdiff.runtime import Bundle, Engine, Plan, Request, resolve, sample
from cfgdiff.runtime.cascade import stage_engines
from cfgdiff.runtime.counting import Cost, cost_of
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import write_whole
from cfgdiff.runtime.sidecar import graph_digest

from .features import Classifier, Extractor, rgb

BLOCK, BATCH = 256, 64
ARRAYS = ("pictures", "features", "logits", "scores")
Watch = Callable[[int], object]


@dataclass(frozen=True)
class Measured:
    """N samples: pictures (N, H, W, C) uint8, the classes asked for (N,), features (N, F) and logits (N, L) of the
    extractor, float32, and scores (N, K), the classifier's logits; L and K are 0 where there are none."""

    pictures: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    logits: np.ndarray
    scores: np.ndarray


class Samples:
    """Measures samples of one model into a folder, a sub-folder for each setting. Where they come from is a subclass's.

    Its methods take settings as a `Request`, of which they choose the classes, numbers and batch themselves.
    """

    def __init__(self, folder: Path, bundle: Bundle, extractor: Extractor, classifier: Classifier | None) -> None:
        self.folder, self.bundle, self.extractor, self.classifier = folder, bundle, extractor, classifier

    def protocol(self, settings: Request) -> dict[str, Any]:
        """All that the samples and their features depend on, in plain values. Raises `BadInput` for settings that make
        no sense."""
        return self.judged()

    def pictures(self, settings: Request, numbers: range, watch: Watch) -> np.ndarray:
        """Those of these numbers, (N, H, W, C) uint8; `watch` gets the rows of every evaluation."""
        raise Failure(f"{self.folder}: there are no pictures, only what they are measured by")

    def labels(self, first: int, n: int) -> np.ndarray:
        """The classes of pictures first .. first + n - 1. (N,) int64."""
        return np.arange(first, first + n) % len(self.bundle.class_names)

    def cost(self, settings: Request) -> Cost | None:
        """What a picture takes; None where it was drawn elsewhere."""
        return None

    def judged(self) -> dict[str, Any]:
        """The part of the protocol that says what pictures are measured by."""
        classifier = self.classifier
        return {
            "features": self.extractor.name, "features sha256": self.extractor.sha256,
            "classifier sha256": classifier.sha256 if classifier else None,
        }  # fmt: skip

    def evaluations(self, settings: Request) -> int:
        """Those of a picture, of all networks of a cascade."""
        return int(self.protocol(settings)["evaluations"])

    def place(self, settings: Request) -> Path:
        """The sub-folder: a name for people, and a digest of the protocol."""
        protocol = self.protocol(settings)
        digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:10]
        return self.folder / f"w{protocol['guidance']:g}-{protocol['sampler']}-{protocol['evaluations']}-{digest}"

    def missing(self, settings: Request, n: int) -> list[int]:
        """The blocks of the first n pictures that are not there."""
        place = self.place(settings)
        return [k for k in range(-(-n // BLOCK)) if not (place / _file(k)).is_file()]

    def fill(self, settings: Request, n: int, shard: tuple[int, int] = (1, 1), watch: Watch = lambda n: None) -> None:
        """Draw the missing blocks, in shard (K, M) those k with k mod M = K - 1. `watch` gets the rows of every
        evaluation."""
        place = self.place(settings)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"--out: {place} cannot be made ({error.strerror}); choose another place") from None
        write_whole(place / "protocol.json", (json.dumps(self.protocol(settings), indent=1) + "\n").encode())
        for k in self.missing(settings, n):
            if k % shard[1] == shard[0] - 1:
                self._measure(place / _file(k), self.pictures(settings, range(k * BLOCK, (k + 1) * BLOCK), watch))

    def _measure(self, file: Path, pictures: np.ndarray) -> None:
        features, logits = self.extractor.extract(rgb(pictures))
        scores = self.classifier.classify(pictures)[1] if self.classifier else np.zeros((len(pictures), 0), np.float32)
        buffer = io.BytesIO()
        np.savez(buffer, pictures=pictures, features=features, logits=logits, scores=scores)
        write_whole(file, buffer.getvalue())

    def read(self, settings: Request, n: int, first: int = 0) -> Measured:
        """Pictures first .. first + n - 1, all drawn before. Raises `Failure` for a damaged block."""
        place, parts = self.place(settings), list[list[np.ndarray]]()
        for k in range(first // BLOCK, -(-(first + n) // BLOCK)):
            try:
                with (place / _file(k)).open("rb") as file, np.load(file) as arrays:
                    parts.append([arrays[name] for name in ARRAYS])
            except (OSError, ValueError, KeyError, BadZipFile) as error:
                raise Failure(
                    f"{place / _file(k)}: not readable ({str(error).splitlines()[0]}); remove it, and it is drawn again"
                ) from None
        start = first % BLOCK
        pictures, *rest = (np.concatenate(arrays)[start : start + n] for arrays in zip(*parts, strict=True))
        return Measured(pictures, self.labels(first, n), *rest)


class Sampling(Samples):
    """Samples that an engine draws where they are missing."""

    def __init__(
        self, folder: Path, bundle: Bundle, engine: Engine, extractor: Extractor, classifier: Classifier | None
    ) -> None:
        super().__init__(folder, bundle, extractor, classifier)
        self.engine = engine

    def protocol(self, settings: Request) -> dict[str, Any]:
        """See `Samples`."""
        bundle, plan = self.bundle, self._plan(settings, range(1))
        variant = bundle.variants.get(self.engine.precision, bundle.variants["float32"])
        engines = stage_engines(self.engine, plan.stages)
        stages = [self._stage(stage, engine) for stage, engine in zip(plan.stages, engines, strict=True)]
        return {
            "model": bundle.name, "model sha256": variant.files[variant.graph],
            "engine": self.engine.name, "precision": self.engine.precision,
            "sampler": plan.course.sampler, "timesteps": [round(float(t), 6) for t in plan.course.timesteps],
            "evaluations": plan.steps,
            "guidance": plan.guidance.weights[0], "interval": plan.guidance.interval, "seed": settings.seed,
            "classes": f"picture i is of class i mod {len(bundle.class_names)}", "batch": BATCH,
            **({"stages": stages} if stages else {}),
        } | self.judged()  # fmt: skip

    def evaluations(self, settings: Request) -> int:
        """See `Samples`."""
        return self._plan(settings, range(1)).evaluations

    def cost(self, settings: Request) -> Cost:
        """See `Samples`: one is drawn."""
        return cost_of(self.bundle, self.engine, settings)

    @staticmethod
    def _stage(plan: Plan, engine: Engine) -> dict[str, Any]:
        """The same of a super-resolution stage."""
        stage, asked = plan.bundle, plan.request.condition_noise
        assert isinstance(stage, Bundle) and stage.condition
        return {
            "model sha256": graph_digest(stage.variant("float32")), "engine": engine.name,
            "precision": engine.precision, "sampler": plan.course.sampler,
            "timesteps": [round(float(t), 6) for t in plan.course.timesteps], "evaluations": plan.steps,
            "guidance": plan.guidance.weights[0], "interval": plan.guidance.interval,
            "noise": stage.condition.noise if asked is None else asked,
        }  # fmt: skip

    def pictures(self, settings: Request, numbers: range, watch: Watch) -> np.ndarray:
        """See `Samples`."""
        drawn = sample(self.engine, self._plan(settings, numbers), lambda first, x0: watch(len(x0)))
        return np.concatenate([part for _, part in drawn])

    def _plan(self, settings: Request, numbers: range) -> Plan:
        classes = [i % len(self.bundle.class_names) for i in numbers]
        return resolve(self.bundle, replace(settings, classes=classes, indices=numbers, batch=BATCH))


def _file(k: int) -> str:
    return f"block-{k:06}.npz"
