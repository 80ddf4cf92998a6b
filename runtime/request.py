"""How pictures are asked for: one value, which plan.py resolves against a bundle. It knows no engines and no flags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bundle import Model
from .errors import BadInput, named

Classes = Sequence[str | int] | np.ndarray
Seed = int | Sequence[int] | np.ndarray
BATCH = 64


@dataclass(frozen=True)
class Blend:
    """The other end of an interpolation: picture i is `shares[i]`, 0 .. 1, of the way to it.

    Attributes:
        seed: of the latent there, one or N; the latents between are on the arc from one to the other.
        classes: there, N names or numbers; between two classes the predictions are mixed, at twice the cost.
        shares: N of them.
    """

    seed: Seed
    classes: Classes
    shares: Sequence[float]


@dataclass(frozen=True)
class Edit:
    """A picture to start from, noised to `strength` of the schedule (SDEdit, Meng et al. 2022), instead of noise alone.

    Attributes:
        picture: (H, W, C) uint8.
        strength: in (0, 1], the share of the schedule to go through: 1 keeps nothing of the picture, 0.5 its outlines.
        mask: (H, W) bool, where to draw; elsewhere the picture is kept, pixel by pixel. None: everywhere.
    """

    picture: np.ndarray
    strength: float = 0.5
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Stage:
    """What a request for a cascade's pictures asks of one super-resolution stage. None leaves a choice to the stage.

    Attributes:
        steps, guidance, sampler, interval: as in a `Request`.
        noise: the timestep whose noise the smaller picture gets.
    """

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    interval: tuple[float, float] | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Request:
    """A request for N pictures. None leaves a choice to the bundle.

    Picture i depends on (seed, i), its class and its guidance alone, and not on `batch`.

    Attributes:
        classes: N names, in any case, or numbers.
        steps: network evaluations a picture; where None and `timesteps` are given, as many as these are for.
        guidance: w in uncond + w (cond - uncond), one or N; 1 is plain conditional.
        seed: 0 .. 2^64 - 1; or N of them: each picture then depends on its seed and not on its place.
        sampler: a name in `SAMPLERS`, or "fitted". None: fitted where the bundle has it for these steps and guidance.
        spacing: uniform, quadratic, log-snr or karras. None: the sampler's.
        timesteps: the t of the evaluations, falling, in (0, T], in place of a spacing; for heun of every second one.
        eta: 0 .. 1, the share of DDPM's noise in ddim.
        interval: of sigma / alpha, where w acts; (0, inf) is everywhere.
        rescale, threshold: see `Guidance`.
        indices: the i of each picture, (N,), 0 .. 2^64 - 1. None: 0 .. N-1, or all 0 where each has a seed of its own.
        blend: what to interpolate to.
        edit: a picture to start from.
        batch: pictures at a time.
        low: the smaller pictures that a super-resolution stage enlarges, (N, h, w, C) uint8.
        condition_noise: the timestep whose noise `low` gets. None: the stage's.
        stages: for a cascade, one for each of its stages, or none; the settings before are those of its base.
    """

    classes: Classes
    steps: int | None = None
    guidance: float | Sequence[float] | np.ndarray | None = None
    seed: Seed = 0
    sampler: str | None = None
    spacing: str | None = None
    timesteps: Sequence[float] | None = None
    eta: float = 0.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    threshold: float | None = None
    indices: Sequence[int] | np.ndarray | None = None
    blend: Blend | None = None
    edit: Edit | None = None
    batch: int = BATCH
    low: np.ndarray | None = None
    condition_noise: float | None = None
    stages: Sequence[Stage] = ()

    @property
    def strength(self) -> float:
        """The share of the schedule to go through."""
        return 1.0 if self.edit is None else self.edit.strength


def class_labels(bundle: Model, classes: Classes) -> np.ndarray:
    """(N,) int64 labels of class names, in any case, or numbers. Raises `BadInput`, with the nearest name."""
    if isinstance(classes, str | bytes) or not isinstance(classes, Sequence | np.ndarray) or not len(classes):
        example = f"as in [{bundle.class_names[0]!r}]"
        raise BadInput(f"classes: expected a list of names or numbers, found {classes!r:.60}; {example}")
    numbers, labels = {name: k for k, name in enumerate(bundle.class_names)}, []
    for wanted in classes:
        if isinstance(wanted, int | np.integer) and not isinstance(wanted, bool) and 0 <= wanted < len(numbers):
            labels.append(int(wanted))
        else:
            labels.append(numbers[named("classes", "class", str(wanted), numbers)])
    return np.array(labels, np.int64)
