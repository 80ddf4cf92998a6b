"""The certificate: what is shown of an engine before it is trusted. An engine passes on its answers alone, whatever made it.

Three parts: its rows do not depend on their neighbours and obey the guidance equation; its predictions are float32's at every noise
level; and its pictures are float32's, in decibels and in features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.images import psnr
from cfgdiff.runtime.noise import normals

from .compare import Watch, draw, errors_by_level, feature_distance, features

PICTURES = 256
ANY = 4096  # the largest batch of engines that take any
B, G = 8, 5  # rows and guided rows of the inputs that the equations are checked on


@dataclass(frozen=True)
class Limits:
    """What a certificate allows: relative errors (None: any), decibels, and the share of the distance between unrelated pictures."""

    rows: float
    prediction: float | None
    x0: float
    psnr_db: float
    features: float


LIMITS = {
    "float32": Limits(rows=1e-3, prediction=1e-3, x0=1e-3, psnr_db=45, features=0.02),
    "float16": Limits(rows=1e-2, prediction=1e-2, x0=1e-2, psnr_db=35, features=0.05),
    "bfloat16": Limits(rows=0.05, prediction=None, x0=0.05, psnr_db=28, features=0.2),
    "int8": Limits(rows=0.05, prediction=None, x0=0.1, psnr_db=28, features=0.2),
}


@dataclass(frozen=True)
class Reference:
    """What float32 on ONNX Runtime answers, computed once for all engines of a bundle."""

    engine: Engine
    graph: onnx.ModelProto
    pictures: np.ndarray  # (n, H, W, C) uint8
    features: np.ndarray  # (n, F)


def reference(engine: Engine, bundle: Bundle, n: int = PICTURES, watch: Watch = lambda n: None) -> Reference:
    """Draw `n` pictures with float32 on the CPU."""
    graph = onnx.load(str(bundle.path / bundle.variant("float32").graph))
    pictures = draw(engine, bundle, n, watch)
    return Reference(engine, graph, pictures, features(graph, bundle, pictures))


def verify(engine: Engine, bundle: Bundle, against: Reference, watch: Watch = lambda n: None) -> dict[str, Any]:
    """A certificate for `engine`: what was found, the limits, the failures in words, and whether it passed.

    Args:
        against: its number of pictures is the number compared.
        watch: gets the size of every batch of pictures.
    """
    limits = LIMITS[engine.precision]
    rows, levels = (
        row_errors(engine, bundle),
        errors_by_level(_InParts(engine), against.engine, bundle, against.pictures[:16]),
    )
    failures = [
        f"{what}: error {error:.1e}, limit {limits.rows:g}" for what, error in rows.items() if not error <= limits.rows
    ]
    for what, limit in (("prediction", limits.prediction), ("x0", limits.x0)):
        for level, error in levels[what].items():
            if limit is not None and not error <= limit:
                failures.append(f"{what} at ln(sigma / alpha) = {level}: error {error:.1e}, limit {limit:g}")
    found: dict[str, Any] = {"rows": _rounded(rows)} | {what: _rounded(errors) for what, errors in levels.items()}
    if not failures:  # pictures take a hundred times as long, and cannot save it
        found |= _pictures(engine, bundle, against, watch)
        if not found["psnr_db"] >= limits.psnr_db:
            failures.append(f"pictures: {found['psnr_db']} dB from float32's, limit {limits.psnr_db:g}")
        if not found["features"] <= limits.features:
            failures.append(
                f"features: {found['features']} of the distance between unrelated pictures, limit {limits.features:g}"
            )
    return {
        "engine": engine.name,
        "passed": not failures,
        "failures": failures,
        "limits": asdict(limits),
        "found": found,
    }


def _pictures(engine: Engine, bundle: Bundle, against: Reference, watch: Watch) -> dict[str, Any]:
    pictures = against.pictures if engine is against.engine else draw(engine, bundle, len(against.pictures), watch)
    distance = feature_distance(features(against.graph, bundle, pictures), against.features)
    return {
        "pictures": len(pictures),
        "psnr_db": round(psnr(pictures, against.pictures), 1),
        "features": round(distance, 4),
    }


def row_errors(engine: Engine, bundle: Bundle) -> dict[str, float]:
    """How far the engine's answers are from what its own answers imply, relative to the largest: 0 is right.

    Rows must not depend on order, repetition or batch, and guided rows must be uncond + w (cond - uncond), with cond from an
    unguided call and uncond independent of the class.
    """
    classes, whole_engine = len(bundle.class_names), _InParts(engine)
    x, t = (
        normals(0, np.arange(B), 0, bundle.image_shape),
        np.linspace(0.05, 0.95, B, dtype=np.float32) * bundle.schedule.T,
    )
    label, w = np.arange(B) % classes, np.linspace(-1, 6, G, dtype=np.float32)

    def ask(rows: np.ndarray, w: np.ndarray, label: np.ndarray = label) -> np.ndarray:
        return whole_engine.predict(x[rows], t[rows], label[rows], w).astype(np.float64)

    everyone, guided, none = np.arange(B), np.arange(G), np.zeros(0, np.float32)
    whole = ask(everyone, w)
    size = float(np.abs(whole).max()) + 1e-12

    def apart(found: np.ndarray, expected: np.ndarray) -> float:
        return float(np.abs(found - expected).max()) / size

    order = np.concatenate([guided[::-1], np.arange(B - 1, G - 1, -1)])
    twice = np.concatenate([guided, guided, everyone[G:], everyone[G:]])
    cond, uncond = ask(everyone, none), ask(everyone, np.zeros(B, np.float32))
    found = {
        "rows in another order": apart(ask(order, w[::-1].copy()), whole[order]),
        "rows twice": apart(ask(twice, np.tile(w, 2)), whole[twice]),
        "w = 1 against no guidance": apart(ask(everyone, np.ones(B, np.float32)), cond),
        "w = 0 with other classes": apart(ask(everyone, np.zeros(B, np.float32), (label + 1) % classes), uncond),
        "uncond + w (cond - uncond)": apart(whole[:G], uncond[:G] + w[:, None, None, None] * (cond - uncond)[:G]),
        "rows without w": apart(whole[G:], cond[G:]),
    }
    for b in _batches(engine):
        rows, every_w = np.arange(b) % B, np.resize(w, b)
        found[f"batch of {b}"] = apart(ask(rows, none), cond[rows])
        guided_rows = uncond[rows] + every_w[:, None, None, None] * (cond - uncond)[rows]
        found[f"batch of {b}, all guided"] = apart(ask(rows, every_w), guided_rows)
    return found


def _batches(engine: Engine) -> list[int]:
    """The batches to try: small, the usual one, and an engine's largest where it has one."""
    most = engine.max_batch
    return sorted({min(b, most) for b in (1, 2, 64)} | ({most} if most < ANY else set()))


class _InParts:
    """An engine that takes any number of rows, as many at a time as the one inside can."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.precision, self.max_batch = engine, engine.name, engine.precision, engine.max_batch

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        """See `Engine.predict`."""
        most, inputs = self.max_batch, (sample, timestep, class_label, guidance)
        parts = [
            self.engine.predict(*(array[lo : lo + most] for array in inputs)) for lo in range(0, len(sample), most)
        ]
        return np.concatenate(parts)

    def close(self) -> None:
        """Close the engine inside."""
        self.engine.close()


def _rounded(errors: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{error:.1e}") for name, error in errors.items()}
