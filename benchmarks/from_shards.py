"""Samples that are there already, in the finished shards of a set, measured as if they had just been drawn."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Request
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.notes import model_digest
from cfgdiff.runtime.places import Place
from cfgdiff.runtime.shards import Manifest, gaps, read_shard

from .blocks import Samples, Watch
from .features import Classifier, Extractor


def check_model(place: Place, manifest: Manifest, bundle: Bundle) -> None:
    """Raises `Failure` where the bundle has other classes or pictures than a set, or another graph drew it."""
    precisions = [precision for _, precision in manifest.made_by]
    drew = [manifest.model_sha256, *(each["model_sha256"] for each in manifest.stage_models)]
    own = [model_digest(model, precision) for model, precision in zip(bundle.models, precisions, strict=False)]
    differing = {
        "classes": (", ".join(manifest.class_names), ", ".join(bundle.class_names)),
        "pictures (H, W, C)": (manifest.shape, (*bundle.picture_shape[1:], bundle.picture_shape[0])),
        "the graph": tuple(", ".join(digest[:12] for digest in digests) for digests in (drew, own)),
    }
    for what, (there, here) in differing.items():
        if there != here:
            named = f"{what} {there!s:.200} of '{manifest.model}', where the bundle {bundle.name} has {here!s:.200}"
            raise Failure(f"{place}: has {named}; give the bundle that drew it")


def first_of(place: Place, manifests: list[Manifest], n: int) -> list[Manifest]:
    """The shards of the first n pictures. Raises `Failure` where some are not finished."""
    there = manifests[-1].first + manifests[-1].count
    if missing := gaps(manifests, n):
        named = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        remedy = "draw them, or give another `n`"
        raise Failure(f"{place}: of the first {n} pictures, shards are missing: {named}; {remedy}")
    if there < n:
        raise Failure(f"{place}: expected {n} pictures, found {there}; draw more, or give `n` {there}")
    return [manifest for manifest in manifests if manifest.first < n]


def drawn_with(manifest: Manifest) -> dict[str, Any]:
    """The part of a protocol that says how the pictures of a set were drawn."""
    settings, guidance = manifest.settings, list(manifest.guidance)
    return {
        "model": manifest.model, "model sha256": manifest.model_sha256, "precision": manifest.precision,
        "sampler": settings["sampler"], "evaluations": settings["steps"], "interval": settings.get("interval"),
        "guidance": guidance[0] if len(guidance) == 1 else guidance, "seed": manifest.seed,
        "classes": f"in turn: {', '.join(manifest.classes)}", "settings": settings,
        **({"stages": _stages(manifest)} if manifest.stage_models else {}),
    }  # fmt: skip


def _stages(manifest: Manifest) -> list[dict[str, str]]:
    return [{"model sha256": each["model_sha256"], "precision": each["precision"]} for each in manifest.stage_models]


class ShardSamples(Samples):
    """The first n pictures of a set, whose manifests are `shards`; see `first_of`."""

    def __init__(
        self, folder: Path, bundle: Bundle, place: Place, shards: list[Manifest], extractor: Extractor,
        classifier: Classifier | None,
    ) -> None:  # fmt: skip
        super().__init__(folder, bundle, extractor, classifier)
        self._shards, self._labels = shards, np.concatenate([manifest.labels for manifest in shards])
        self._read = lru_cache(maxsize=2)(lambda k: read_shard(place, shards[k])[0])  # a block may lie in two

    def protocol(self, settings: Request) -> dict[str, Any]:
        """See `Samples`; the settings are those of the shards."""
        contents = hashlib.sha256("".join(manifest.sha256 for manifest in self._shards).encode()).hexdigest()
        return drawn_with(self._shards[0]) | {"engine": self._shards[0].engine, "shards": contents} | self.judged()

    def place(self, settings: Request) -> Path:
        """See `Samples`."""
        digest = hashlib.sha256(json.dumps(self.protocol(settings), sort_keys=True).encode()).hexdigest()[:10]
        return self.folder / f"shards-{digest}"

    def labels(self, first: int, n: int) -> np.ndarray:
        """See `Samples`."""
        return self._labels[first : first + n]

    def pictures(self, settings: Request, numbers: range, watch: Watch) -> np.ndarray:
        """See `Samples`; fewer at the end of the set."""
        parts, size = list[np.ndarray](), self._shards[0].shard_size
        for k in range(numbers.start // size, min((numbers.stop - 1) // size + 1, len(self._shards))):
            first = k * size
            parts.append(self._read(k)[max(0, numbers.start - first) : numbers.stop - first])
        watch(len(numbers) * int(self._shards[0].settings["steps"]))
        return np.concatenate(parts)
