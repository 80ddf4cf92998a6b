"""The guided sampling loop over batches: classes in, uint8 pictures out. It knows no files, flags or engines by name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .bundle import Model
from .engine import Engine
from .errors import BadInput, named, whole
from .guidance import finite, guided, mixed, thresholded, watched, with_x0
from .noise import keys, normals
from .plan import Plan, make_plan
from .samplers import Predict

Watch = Callable[[int, np.ndarray], object]
BATCH = 64


@dataclass(frozen=True)
class Blend:
    """The other end of an interpolation: picture i is `shares[i]`, 0 .. 1, of the way to it.

    Attributes:
        seed: of the latent there, one or N; what lies between two latents is on the arc between them.
        classes: there, N names or numbers; between two classes the network's answers are mixed, at twice the cost.
        shares: N of them.
    """

    seed: int | Sequence[int] | np.ndarray
    classes: Sequence[str | int]
    shares: Sequence[float]


@dataclass(frozen=True)
class Edit:
    """A picture to start from, noised to `strength` of the schedule (SDEdit, Meng et al. 2022), instead of noise alone.

    Attributes:
        picture: (H, W, C) uint8.
        strength: 1 keeps nothing of it, little keeps nearly all.
        mask: (H, W) bool, where to draw; elsewhere the picture is kept, pixel by pixel. None: everywhere.
    """

    picture: np.ndarray
    strength: float = 0.5
    mask: np.ndarray | None = None


def class_labels(bundle: Model, classes: Sequence[str | int] | np.ndarray) -> np.ndarray:
    """(N,) int64 labels of class names, in any case, or numbers. Raises `BadInput` for an unknown one, naming the nearest."""
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence | np.ndarray):
        raise BadInput(f"classes: expected a list of names or numbers, found {classes!r:.60}; as in [{bundle.class_names[0]!r}]")
    known, labels = {name: k for k, name in enumerate(bundle.class_names)}, []
    for wanted in classes:
        if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool) and 0 <= wanted < len(known):
            labels.append(int(wanted))
        else:
            labels.append(known[named("--class", "class", str(wanted), known)])
    return np.array(labels, np.int64)


def generate(engine: Engine, bundle: Model, classes: Sequence[str | int] | np.ndarray, steps: int | None = None,
             guidance: float | Sequence[float] | np.ndarray | None = None, seed: int | Sequence[int] | np.ndarray = 0,
             sampler: str | None = None, batch: int = BATCH,
             spacing: str | None = None, timesteps: Sequence[float] | None = None, eta: float = 0.0,
             interval: tuple[float, float] | None = None, rescale: float = 0.0, threshold: float | None = None,
             indices: Sequence[int] | np.ndarray | None = None, blend: Blend | None = None, edit: Edit | None = None,
             watch: Watch | None = None) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Generate one picture for each entry of `classes`. Picture i depends on (seed, i), its class and its guidance alone.

    Args:
        classes: names or numbers, N of them. The case of names does not matter, nor does that of samplers and spacings.
        steps: network evaluations a picture; the bundle's default where None, as for guidance and sampler, or what `timesteps` are for.
        guidance: w in uncond + w (cond - uncond), one or N; 1 is plain conditional, at half the cost where w acts.
        seed: 0 .. 2^64 - 1; or one for each picture, N of them, which then depends on its seed alone and not on its place.
        sampler: one of `SAMPLERS`, or "fitted"; where None, fitted where the bundle has it for these steps and this guidance.
        batch: pictures at a time.
        spacing: uniform, quadratic, log-snr or karras; the sampler's own where None.
        timesteps: the t of the evaluations, falling, in (0, T], in place of a spacing; for heun of every second one.
        eta: 0 .. 1, the share of DDPM's noise in ddim.
        interval, rescale, threshold: see `Guidance`; the bundle's interval where None.
        indices: the i of each picture, (N,), 0 .. 2^64 - 1; where None 0 .. N-1, or all 0 where each has a seed of its own.
        blend: what to interpolate to.
        edit: a picture to start from.
        watch: told (first, x0) after every evaluation: the clean pictures (B, C, H, W), within about -1 .. 1, as they then look.

    Yields:
        (first, pictures): those of classes[first:], (B, H, W, C) uint8, in order. It can be closed at any time.

    Raises:
        BadInput: at the call, before any work.
        Failure: while drawing, where the network or a picture is not finite, naming the evaluation.

    Example:
        >>> from cfgdiff.runtime import generate, load_bundle, open_engine
        >>> bundle = load_bundle()
        >>> with open_engine(bundle, "cpu") as engine:
        ...     for first, pictures in generate(engine, bundle, ["frog", "ship", "cat"], steps=4, batch=2):
        ...         print(first, pictures.shape, pictures.dtype)
        0 (2, 32, 32, 3) uint8
        2 (1, 32, 32, 3) uint8
    """
    strength = edit.strength if edit else 1.0
    plan = make_plan(bundle, sampler, steps, guidance, spacing, timesteps, eta, interval, rescale, threshold, strength)
    labels = class_labels(bundle, classes)
    n, batch = whole("--n", len(labels)), whole("--batch", batch)
    if indices is None:
        indices = np.arange(n) if np.ndim(seed) == 0 else np.zeros(n, np.int64)
    run = _Run(engine, bundle, plan, keys("--seed", seed, n), labels, keys("indices", indices, n), blend, edit, watch)
    rows = 2 if plan.guidance.rescale else 1
    return run.batches(min(batch, max(1, engine.max_batch // rows)))


class _Run:
    """All that the batches of a run share."""

    def __init__(self, engine: Engine, bundle: Model, plan: Plan, seeds: np.ndarray, labels: np.ndarray, numbers: np.ndarray,
                 blend: Blend | None, edit: Edit | None, watch: Watch | None) -> None:  # fmt: skip
        self.engine, self.bundle, self.plan, self.seeds, self.watch = engine, bundle, plan, seeds, watch
        self.labels, self.numbers, self.blend, self.edit = labels, numbers, blend, edit
        n = len(labels)
        if len(plan.guidance.weights) not in (1, n):
            raise BadInput(f"--guidance: expected 1 or {n} numbers, one for each class, found {len(plan.guidance.weights)}")
        if blend:
            self.other_seeds = keys("--seed", blend.seed, n)
            self.shares, self.others = np.array(blend.shares, np.float64), class_labels(bundle, blend.classes)
            if not len(self.shares) == len(self.others) == n:
                raise BadInput(f"blend: expected {n} shares and classes, found {len(self.shares)} and {len(self.others)}")
            if not ((self.shares >= 0) & (self.shares <= 1)).all():  # nor NaN
                raise BadInput(f"blend: expected shares of 0 .. 1, found {', '.join(f'{share:g}' for share in self.shares)}")
        if edit:
            self.known = _checked(edit, bundle)

    def batches(self, batch: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `generate`."""
        schedule, plan, shape = self.bundle.schedule, self.plan, self.bundle.image_shape
        for first in range(0, len(self.labels), batch):
            part = slice(first, first + batch)
            noise = partial(normals, self.seeds[part], self.numbers[part], shape=shape)
            x = noise(0)
            if self.blend:
                x = arc(x, normals(self.other_seeds[part], self.numbers[part], 0, shape), self.shares[part])
            if self.edit:
                t = plan.timesteps[0]
                x = (float(schedule.alpha(t)) * self.known + float(schedule.sigma(t)) * x).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite fails in words
                x0 = finite(plan.function(self._predict(part), x, plan.timesteps, schedule, noise), self.engine, 0)
            if self.edit and self.edit.mask is not None:
                x0 = np.where(self.edit.mask, x0, self.known)
            yield first, to_uint8(x0 * schedule.data_std)

    def _predict(self, part: slice) -> Predict:
        schedule, guidance, null_class = self.bundle.schedule, self.plan.guidance, len(self.bundle.class_names)
        weights = guidance.weights_of(np.arange(len(self.labels))[part])
        predict = guided(self.engine, schedule, self.labels[part], null_class, weights, guidance)
        if self.blend and (self.labels != self.others).any():
            other = guided(self.engine, schedule, self.others[part], null_class, weights, guidance)
            predict = mixed(predict, other, self.shares[part])
        if guidance.threshold is not None:
            predict = with_x0(predict, schedule, partial(thresholded, quantile=guidance.threshold, limit=1 / schedule.data_std))
        if self.edit and self.edit.mask is not None:
            mask = self.edit.mask
            predict = with_x0(predict, schedule, lambda x0: np.where(mask, x0, self.known))
        if self.watch:
            watch = self.watch
            predict = watched(predict, schedule, lambda x0: watch(part.start, x0 * schedule.data_std))
        return predict


def _checked(edit: Edit, bundle: Model) -> np.ndarray:
    """The picture as x0, (C, H, W) float32. Raises `BadInput` where it does not fit the model."""
    c, h, w = bundle.image_shape
    for flag, array, shape, kind in (("--from", edit.picture, (h, w, c), np.uint8), ("--mask", edit.mask, (h, w), np.bool_)):
        if array is not None and (array.shape != shape or array.dtype != kind):
            raise BadInput(f"{flag}: expected {np.dtype(kind)} {shape}, found {array.dtype} {array.shape}")
    return ((edit.picture.transpose(2, 0, 1) / 127.5 - 1) / bundle.schedule.data_std).astype(np.float32)


def arc(a: np.ndarray, b: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of latents (B, C, H, W), each pair by its share (B,), 0 .. 1; it keeps their length."""
    axes, share = tuple(range(1, a.ndim)), shares.reshape(-1, *[1] * (a.ndim - 1))
    lengths = np.linalg.norm(a.reshape(len(a), -1), axis=1) * np.linalg.norm(b.reshape(len(b), -1), axis=1)
    cosine = (a * b).sum(axes, dtype=np.float64) / lengths
    angle = np.arccos(np.clip(cosine, -1, 1)).reshape(share.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        one, other = np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
    flat = np.sin(angle) < 1e-6  # the same latent twice
    return (np.where(flat, 1 - share, one) * a + np.where(flat, share, other) * b).astype(np.float32)


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8."""
    return np.rint((pictures.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
