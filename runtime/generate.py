"""The guided sampling loop over batches: classes in, uint8 pictures out. It knows no files, flags or engines by name."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .bundle import Bundle
from .engine import Engine
from .errors import BadInput, nearest
from .noise import normals
from .plan import Plan, make_plan


def class_labels(bundle: Bundle, classes: Sequence[str | int]) -> np.ndarray:
    """(N,) int64 labels of class names or numbers. Raises `BadInput` for an unknown one, naming the nearest."""
    known, labels = {name: k for k, name in enumerate(bundle.class_names)}, []
    for wanted in classes:
        if isinstance(wanted, str) and wanted in known:
            labels.append(known[wanted])
        elif isinstance(wanted, int) and 0 <= wanted < len(known):
            labels.append(wanted)
        else:
            raise BadInput(f"--class: no class '{wanted}'; choose from {', '.join(known)}{nearest(str(wanted), list(known))}")
    return np.array(labels, np.int64)


def generate(engine: Engine, bundle: Bundle, classes: Sequence[str | int], steps: int | None = None, guidance: float | None = None,
             seed: int = 0, sampler: str | None = None, batch: int = 64, spacing: str | None = None,
             timesteps: Sequence[float] | None = None, eta: float = 0.0,
             indices: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Generate one picture for each entry of `classes`. Picture i depends on (seed, i) and its class alone.

    Args:
        classes: names or numbers, N of them.
        steps: network evaluations a picture; the bundle's default where None, as for guidance and sampler, or what `timesteps` are for.
        guidance: w in uncond + w (cond - uncond); 1 is plain conditional, at half the cost.
        seed: 0 .. 2^64 - 1.
        sampler: one of `SAMPLERS`, or "fitted"; where None, fitted where the bundle has it for these steps and this guidance.
        batch: pictures at a time.
        spacing: uniform, quadratic, log-snr or karras; the sampler's own where None.
        timesteps: the t of the evaluations, falling, in (0, T], in place of a spacing; for heun of every second one.
        eta: 0 .. 1, the share of DDPM's noise in ddim.
        indices: the i of each picture, (N,), >= 0; 0 .. N-1 where None.

    Yields:
        (first, pictures): those of classes[first:], (B, H, W, C) uint8, in order.

    Raises:
        BadInput: at the call, before any work.
    """
    plan = make_plan(bundle, sampler, steps, guidance, spacing, timesteps, eta)
    for flag, value in (("--batch", batch), ("--n", len(classes))):
        if value < 1:
            raise BadInput(f"{flag}: expected 1 or more, found {value}")
    if not 0 <= seed < 2**64:
        raise BadInput(f"--seed: expected 0 .. 2^64 - 1, found {seed}")
    numbers = np.arange(len(classes)) if indices is None else np.asarray(indices, np.int64)
    if len(numbers) != len(classes) or numbers.min() < 0:
        raise BadInput(f"indices: expected {len(classes)} numbers of at least 0, one for each class, found {len(numbers)}")
    return _batches(engine, bundle, class_labels(bundle, classes), numbers, plan, seed, min(batch, engine.max_batch))


def _batches(engine: Engine, bundle: Bundle, labels: np.ndarray, numbers: np.ndarray, plan: Plan, seed: int,
             batch: int) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    lo, hi = bundle.defaults.interval or (0.0, math.inf)
    for first in range(0, len(labels), batch):
        part, indices = labels[first : first + batch], numbers[first : first + batch]

        def predict(x: np.ndarray, t: float, part: np.ndarray = part) -> np.ndarray:
            guided = plan.guidance != 1 and lo <= float(bundle.schedule.ratio(t)) <= hi
            w = np.full(len(part) if guided else 0, plan.guidance, np.float32)  # (G,)
            return engine.predict(x.astype(np.float32, copy=False), np.full(len(part), t, np.float32), part, w)

        def noise(step: int, indices: np.ndarray = indices) -> np.ndarray:
            return normals(seed, indices, step, bundle.image_shape)

        yield first, to_uint8(plan.function(predict, noise(0), plan.timesteps, bundle.schedule, noise) * bundle.schedule.data_std)


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8."""
    return np.rint((pictures.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
