"""Makes certificates: an engine passes on its answers alone, whatever made it.

Three parts: its rows do not depend on their neighbours and obey the guidance equation; its predictions are float32's at
every noise level; and its pictures are float32's, in decibels and in features.
"""

from dataclasses import asdict, dataclass

import numpy as np
import onnx

from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.certificate import Certificate
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.examples import example_inputs
from cfgdiff.runtime.images import psnr
from cfgdiff.runtime.noise import normals

from .compare import Watch, draw, errors_by_level, feature_distance, features
from .precisions import PRECISIONS

PICTURES = 256
ANY = 4096  # the largest batch of engines that take any
B, G = 8, 5  # rows and guided rows of the inputs that the equations are checked on


@dataclass(frozen=True)
class Reference:
    """The answers of float32 on ONNX Runtime, computed once for all engines of a bundle."""

    engine: Engine
    graph: onnx.ModelProto
    pictures: np.ndarray  # (n, H, W, C) uint8
    features: np.ndarray  # (n, F)


def reference(engine: Engine, bundle: Bundle, n: int = PICTURES, watch: Watch = lambda n: None) -> Reference:
    """Draw `n` pictures with float32 on the CPU."""
    graph = onnx.load(str(bundle.path / bundle.variant("float32").graph))
    pictures = draw(engine, bundle, n, watch)
    return Reference(engine, graph, pictures, features(graph, bundle, pictures))


def verify(
    engine: Engine, bundle: Bundle, against: Reference, watch: Watch = lambda n: None, sha256: str = ""
) -> Certificate:
    """Compare `engine` with `against`, on as many pictures as that has.

    Args:
        watch: receives the size of every batch of pictures.
        sha256: of the graph or the built engine that the certificate is for.
    """
    limits = PRECISIONS[engine.precision].limits
    rows, any_batch = row_errors(engine, bundle), _InParts(engine)
    levels = errors_by_level(any_batch, against.engine, bundle, against.pictures[:16])
    failures = [f"{check}: error {e:.1e}, limit {limits.rows:g}" for check, e in rows.items() if not e <= limits.rows]
    for measure, limit in (("prediction", limits.prediction), ("x0", limits.x0)):
        for level, error in levels[measure].items():
            if limit is not None and not error <= limit:
                failures.append(f"{measure} at ln(sigma / alpha) = {level}: error {error:.1e}, limit {limit:g}")
    pictures, db, distance = 0, None, None
    if not failures:  # pictures take a hundred times as long, and cannot save it
        drawn = against.pictures if engine is against.engine else draw(engine, bundle, len(against.pictures), watch)
        pictures, db = len(drawn), round(psnr(drawn, against.pictures), 1)
        distance = round(feature_distance(features(against.graph, bundle, drawn), against.features), 4)
        if not db >= limits.psnr_db:
            failures.append(f"pictures: {db} dB from float32's, limit {limits.psnr_db:g}")
        if not distance <= limits.features:
            reach = f"limit {limits.features:g}"
            failures.append(f"features: {distance} of the distance between unrelated pictures, {reach}")
    measured = {name: _rounded(errors) for name, errors in (("rows", rows), *levels.items())}
    return Certificate(
        not failures, sha256, engine.name, tuple(failures), asdict(limits), **measured,
        pictures=pictures, psnr_db=db, features=distance,
    )  # fmt: skip


def row_errors(engine: Engine, bundle: Bundle) -> dict[str, float]:
    """How far the engine's answers are from what its own answers imply, relative to the largest: 0 is right.

    Rows must not depend on order, repetition or batch, and guided rows must be uncond + w (cond - uncond), with cond
    from an unguided call and uncond independent of the class; but where w is an input of the network, any w is right.
    """
    classes, any_batch = len(bundle.class_names), _InParts(engine)
    x, inputs = normals(0, np.arange(B), 0, bundle.image_shape), example_inputs(bundle, B)
    t = np.linspace(0.05, 0.95, B, dtype=np.float32) * bundle.schedule.T
    lo, hi = bundle.guidance_input or (-1.0, 9.0)
    label, every_w = np.arange(B) % classes, np.linspace(lo, hi, B, dtype=np.float32)
    w = every_w[:G]

    def ask(rows: np.ndarray, w: np.ndarray, label: np.ndarray = label) -> np.ndarray:
        return any_batch.predict(x[rows], t[rows], label[rows], w, *(a[rows] for a in inputs)).astype(np.float64)

    everyone, guided, none = np.arange(B), np.arange(G), np.zeros(0, np.float32)
    answers = ask(everyone, w)
    size = float(np.abs(answers).max()) + 1e-12

    def apart(answer: np.ndarray, expected: np.ndarray) -> float:
        return float(np.abs(answer - expected).max()) / size

    order = np.concatenate([guided[::-1], np.arange(B - 1, G - 1, -1)])
    twice = np.concatenate([guided, guided, everyone[G:], everyone[G:]])
    cond, all_guided = ask(everyone, none), ask(everyone, every_w)
    errors = {
        "rows in another order": apart(ask(order, w[::-1].copy()), answers[order]),
        "rows twice": apart(ask(twice, np.tile(w, 2)), answers[twice]),
        "w = 1 against no guidance": apart(ask(everyone, np.ones(B, np.float32)), cond),
        "rows with w": apart(answers[:G], all_guided[:G]),
        "rows without w": apart(answers[G:], cond[G:]),
    }
    if not bundle.guidance_input:
        nothing = np.zeros(B, np.float32)
        uncond, other = ask(everyone, nothing), ask(everyone, nothing, (label + 1) % classes)
        expected = uncond + every_w[:, None, None, None] * (cond - uncond)
        errors["w = 0 with other classes"] = apart(other, uncond)
        errors["uncond + w (cond - uncond)"] = apart(all_guided, expected)
    for b in _batches(engine):
        rows = np.arange(b) % B
        errors[f"batch of {b}"] = apart(ask(rows, none), cond[rows])
        errors[f"batch of {b}, all guided"] = apart(ask(rows, every_w[rows]), all_guided[rows])
    return errors


def _batches(engine: Engine) -> list[int]:
    """The batches to try: small, the usual one, and an engine's largest where it has one."""
    most = engine.max_batch
    return sorted({min(b, most) for b in (1, 2, 64)} | ({most} if most < ANY else set()))


class _InParts(WrappedEngine):
    """Takes any number of rows, as many at a time as the engine inside can."""

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray,
        *condition: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """See `Engine.predict`."""
        most, inputs = self.max_batch, (sample, timestep, class_label, guidance, *condition)
        parts = ([array[lo : lo + most] for array in inputs] for lo in range(0, len(sample), most))
        return np.concatenate([self.engine.predict(*part) for part in parts])


def _rounded(errors: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{error:.1e}") for name, error in errors.items()}
