"""The noise schedule, in float64: the one place that knows alpha_bar, for training and for sampling alike.

Notation (Ho et al. 2020, DDPM; Nichol & Dhariwal 2021; Salimans & Ho 2022 for v):

    t              0 .. T, fractional allowed; 0 is clean, 1 .. T are the paper's steps
    alpha_bar(t)   share of the signal's variance left at t
    alpha, sigma   sqrt(alpha_bar), sqrt(1 - alpha_bar):  x_t = alpha x0 + sigma eps
    ratio          sigma / alpha, the noise level of EDM (Karras et al. 2022)
    v              alpha eps - sigma x0
    snr            1 / ratio^2, the signal-to-noise ratio

x0 here is the picture in [-1, 1] divided by `data_std`. Nothing here knows of networks, engines or pictures.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .errors import Failure

OFFSET = 0.008  # s in equation 17 of Nichol & Dhariwal
MAX_BETA = 0.999
MOST_T, MOST_STD = 1_000_000, 1_000  # the linear schedule is a table of T + 1 entries
KINDS, PREDICTIONS = ["cosine", "linear"], ["eps", "v", "x0"]


@cache
def _linear_log_alpha_bars(steps: int) -> np.ndarray:
    """ln alpha_bar(0 .. T) of DDPM's betas: 1e-4 to 0.02 at T = 1000, and as much noise at any other T. (T + 1,)."""
    betas = np.linspace(1e-4, 0.02, steps) * (1000 / steps)
    return np.concatenate([[0.0], np.cumsum(np.log1p(-np.minimum(betas, MAX_BETA)))])


@dataclass(frozen=True)
class Schedule:
    """A noise schedule, cosine (Nichol & Dhariwal 2021) or linear in beta (Ho et al. 2020), and the prediction's type.

    Raises `Failure` for a kind or a prediction that is not known here, as a later bundle or checkpoint may have.
    """

    kind: str = "cosine"
    T: int = 1000
    prediction: str = "v"  # of the network
    data_std: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("prediction", self.prediction, PREDICTIONS)):
            if value not in known:
                raise Failure(
                    f"schedule {name} is {value!r}, expected one of {', '.join(known)}: "
                    "update cfgdiff, or correct bundle.json"
                )
        if not (isinstance(self.T, int) and 1 <= self.T <= MOST_T and 0 < self.data_std <= MOST_STD):
            raise Failure(f"schedule needs a whole T from 1 to {MOST_T} and data_std above 0, up to {MOST_STD}, "
                          f"found T={self.T} and data_std={self.data_std}")  # fmt: skip

    def alpha_bar(self, t: Any) -> np.ndarray:
        """Cosine: equation 17 in closed form, beta_T clipped at 0.999; linear: the product of 1 - beta, geometric
        in between.

        Only the last of the cosine's T betas exceeds 0.999 (it would be 1): clipping is a floor, alpha_bar(T-1) / 1000.
        """
        return _alpha_bar_at(self, float(t)) if isinstance(t, float) else self._alpha_bar(t)

    def _alpha_bar(self, t: Any) -> np.ndarray:
        if self.kind == "linear":
            return np.exp(np.interp(np.asarray(t, np.float64), np.arange(self.T + 1), _linear_log_alpha_bars(self.T)))
        floor = self._cosine(self.T - 1.0) * (1 - MAX_BETA)
        return np.maximum(self._cosine(np.asarray(t, np.float64)), floor)

    def _cosine(self, t: Any) -> Any:
        def f(u: Any) -> Any:
            return np.cos((u + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2

        return f(t / self.T) / f(0.0)

    def alpha(self, t: Any) -> np.ndarray:
        """sqrt(alpha_bar)."""
        return np.sqrt(self.alpha_bar(t))

    def sigma(self, t: Any) -> np.ndarray:
        """sqrt(1 - alpha_bar)."""
        return np.sqrt(1 - self.alpha_bar(t))

    def ratio(self, t: Any) -> np.ndarray:
        """sigma / alpha, the noise level relative to the signal."""
        return self.sigma(t) / self.alpha(t)

    def t_of_ratio(self, ratio: Any) -> np.ndarray:
        """The t whose sigma / alpha is `ratio`: the inverse of `ratio`, between 0 and T."""
        if self.kind == "linear":
            falling = np.log1p(np.asarray(ratio, np.float64) ** 2)  # -ln alpha_bar
            return np.interp(falling, -_linear_log_alpha_bars(self.T), np.arange(self.T + 1.0))
        alpha_bar = 1 / (1 + np.asarray(ratio, np.float64) ** 2)
        angle = np.arccos(np.sqrt(alpha_bar) * np.cos(OFFSET / (1 + OFFSET) * np.pi / 2))
        return np.clip(self.T * (angle * 2 / np.pi * (1 + OFFSET) - OFFSET), 0, self.T)

    def noised(self, x0: Any, eps: Any, t: Any) -> Any:
        """x_t = alpha x0 + sigma eps, the forward process (DDPM, equation 4): arrays or tensors, (B, C, H, W).

        Args:
            x0: clean pictures, divided by `data_std`.
            eps: standard normal noise.
            t: one number, or one a row, (B,).
        """
        return _rows(self.alpha(t), x0) * x0 + _rows(self.sigma(t), x0) * eps

    def target(self, x0: Any, eps: Any, t: Any) -> Any:
        """What the network should answer at `noised(x0, eps, t)`: eps, v or x0, (B, C, H, W)."""
        if self.prediction == "v":
            return _rows(self.alpha(t), x0) * eps - _rows(self.sigma(t), x0) * x0
        return eps if self.prediction == "eps" else x0

    def to_x0(self, prediction: Any, x: Any, t: Any) -> Any:
        """The clean picture that `prediction` at x_t implies, (B, C, H, W); the arguments are those of `noised`."""
        alpha, sigma = _rows(self.alpha(t), x), _rows(self.sigma(t), x)
        if self.prediction == "v":
            return alpha * x - sigma * prediction
        if self.prediction == "x0":
            return prediction
        return (x - sigma * prediction) / alpha

    def from_x0(self, x0: Any, x: Any, t: Any) -> Any:
        """The prediction at x_t, t > 0, that implies the clean picture `x0`: the inverse of `to_x0`."""
        alpha, sigma = _rows(self.alpha(t), x), _rows(self.sigma(t), x)
        if self.prediction == "v":
            return (alpha * x - x0) / sigma
        if self.prediction == "x0":
            return x0
        return (x - alpha * x0) / sigma

    def to_eps(self, prediction: Any, x: Any, t: Any) -> Any:
        """The noise that `prediction` at x_t implies, (B, C, H, W)."""
        if self.prediction == "eps":
            return prediction
        alpha, sigma = _rows(self.alpha(t), x), _rows(self.sigma(t), x)
        if self.prediction == "x0":
            return (x - alpha * prediction) / sigma
        return sigma * x + alpha * prediction


@lru_cache(4096)
def _alpha_bar_at(schedule: Schedule, t: float) -> np.ndarray:
    """A sampler's step asks for it ten times, which would take longer than the step of one small picture."""
    return schedule._alpha_bar(t)


def _rows(values: np.ndarray, like: Any) -> Any:
    """One number as a float; (B,) as (B, 1, 1, 1), for a tensor of PyTorch on its device and in its precision."""
    if not np.ndim(values):
        return float(values)
    column = values[:, None, None, None]
    return column if isinstance(like, np.ndarray) else like.new_tensor(column)
