"""Samplers as generators `(x, timesteps, schedule, noise) -> x0`, which `run` drives.

    x               the initial latent, standard normal, (B, C, H, W) float32
    timesteps       (n + 1,) float64, falling, the last one 0 (clean): one evaluation at each of the others
    noise(step)     standard normals like x; step 1, 2, .. (0 was the latent)
    yield x, t      asks for the network's prediction (eps, v or x0) at x_t, (B, C, H, W); t is a float
    return x0       (B, C, H, W) float32, in units of data_std

They know no engine and have no output; spacing.py chooses the timesteps. Their driver decides when each continues, so
that steps of many, at different t, can share a call of an engine. Coefficients are float64 scalars, pictures float32.
The probability-flow ODE is solved in one of two forms; the last step, to t = 0, is x0:

    over lambda = ln(alpha / sigma)    dpmpp-2m, dpmpp-3m, unipc: exact but for x0, a polynomial in lambda
    over ratio = sigma / alpha         ddim, heun, ipndm: dz / dratio = eps, z = x / alpha (Karras et al. 2022, eq. 1)

ddim is Euler's method in the second: its step is z_s = z_t + (ratio_s - ratio_t) eps. With eta = 1 it is the ancestral
one: its sigma, over alpha_s, is k-diffusion's sigma_up = ratio_s sqrt(1 - ratio_s^2 / ratio_t^2), and the rest, of
eps, is sigma_down. So `euler` and `euler-a` are names for it, with another spacing.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .errors import BadInput, named
from .schedule import Schedule

Predict = Callable[[np.ndarray, float], np.ndarray]
Noise = Callable[[int], np.ndarray]
Steps = Generator[tuple[Any, ...], np.ndarray, np.ndarray]  # yields the arguments of calls, and is sent their answers
Solve = Callable[[np.ndarray, np.ndarray, Schedule, Noise], Steps]
Nodes = list[tuple[float, np.ndarray]]  # evaluations as (t, x0), the newest first


def run(steps: Steps, call: Callable[..., np.ndarray]) -> np.ndarray:
    """What `steps` returns, with the answers of `call` to what it yields: the x0 of a sampler, with `predict(x, t)`."""
    answer: Any = None  # a generator begins with None
    while True:
        try:
            arguments = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = call(*arguments)


def nested(steps: Steps, evaluate: Callable[..., Steps]) -> Steps:
    """`run` where the answers take calls themselves: yields those of `evaluate`, and returns what `steps` does."""
    answer: Any = None
    while True:
        try:
            arguments = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = yield from evaluate(*arguments)


def ddpm(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """Algorithm 2 of DDPM (Ho et al. 2020), with the variance of equation 7; steps t -> s may be longer than 1."""
    for step, (t, s) in enumerate(pairwise(timesteps.tolist()), start=1):
        bar_t, bar_s = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
        alpha, beta = bar_t / bar_s, 1 - bar_t / bar_s
        eps = schedule.to_eps((yield x, t), x, t)
        x = (x - beta / np.sqrt(1 - bar_t) * eps) / np.sqrt(alpha)  # the mean, equation 11
        if s > 0:
            x = x + np.sqrt(beta * (1 - bar_s) / (1 - bar_t)) * noise(step)  # beta tilde
    return x.astype(np.float32, copy=False)


def ddim(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise, eta: float = 0.0) -> Steps:
    """DDIM (Song et al. 2021, equation 12), with eta times the noise of DDPM (equation 16): 0 is the ODE."""
    for step, (t, s) in enumerate(pairwise(timesteps.tolist()), start=1):
        bar_t, bar_s = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
        sigma = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
        x0, eps = _x0_and_eps((yield x, t), x, t, schedule)
        x = float(schedule.alpha(s)) * x0 + math.sqrt(1 - bar_s - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise(step)
    return x.astype(np.float32, copy=False)


def dpmpp_2m(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in lambda = ln(alpha / sigma); the step to t = 0 is x0 itself."""
    before: tuple[np.ndarray, float] | None = None  # x0 of the step before, and its step in lambda
    for t, s in pairwise(timesteps.tolist()):
        x0 = schedule.to_x0((yield x, t), x, t)
        if s == 0:
            x = x0
            break
        h = float(np.log(schedule.ratio(t) / schedule.ratio(s)))
        guess = x0
        if before is not None:
            r = before[1] / h
            guess = x0 + (x0 - before[0]) * (1 / (2 * r))
        x = float(schedule.sigma(s) / schedule.sigma(t)) * x - float(schedule.alpha(s)) * np.expm1(-h) * guess
        before = x0, h
    return x.astype(np.float32, copy=False)


def dpmpp_3m(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """DPM-Solver++ of order 3, multistep (Lu et al. 2022): x0 is a parabola in lambda through three evaluations.

    The order grows over the first steps. The last step but one is of order 2, which is more stable at few steps
    (diffusers' lower_order_final).
    """
    nodes: Nodes = []
    for step, (t, s) in enumerate(pairwise(timesteps.tolist()), start=1):
        x0 = schedule.to_x0((yield x, t), x, t)
        nodes = [(t, x0), *nodes][: min(3, len(timesteps) - step)]
        x = _exponential_step(x, t, s, nodes, schedule) if s > 0 else x0
    return x.astype(np.float32, copy=False)


def unipc(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """UniPC of order 3 with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1 and 2, for x0).

    The orders at both ends are those of `dpmpp_3m`. An evaluation at the predicted x_t serves twice: UniC repeats the
    step to t with it, and UniP continues from there.
    """
    nodes: Nodes = []
    x_before = x
    for step, (t, s) in enumerate(pairwise(timesteps.tolist()), start=1):
        x0 = schedule.to_x0((yield x, t), x, t)
        if nodes and s > 0:
            x = _exponential_step(x_before, nodes[0][0], t, [*nodes, (t, x0)], schedule)  # UniC
        nodes, x_before = [(t, x0), *nodes][: min(3, len(timesteps) - step)], x
        x = _exponential_step(x, t, s, nodes, schedule) if s > 0 else x0  # UniP
    return x.astype(np.float32, copy=False)


def ipndm(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """iPNDM of order 4 (Zhang & Chen 2023): dz / dratio = eps by Adams-Bashforth; the order grows over the first steps.

    The coefficients are those of even steps for any timesteps, as in the published tables: the order is 4 where ratio
    falls evenly, else 2.
    """
    history: list[np.ndarray] = []  # eps, the newest first
    for t, s in pairwise(timesteps.tolist()):
        x0, eps = _x0_and_eps((yield x, t), x, t, schedule)
        history = [eps, *history][: len(ADAMS_BASHFORTH) if s > 0 else 1]
        d = sum(b * eps_i for b, eps_i in zip(ADAMS_BASHFORTH[len(history) - 1], history, strict=True))
        z = x0 + float(schedule.ratio(t)) * (eps - d)  # at ratio 0, along d
        x = float(schedule.alpha(s)) * z + float(schedule.sigma(s)) * d
    return x.astype(np.float32, copy=False)


def heun(x: np.ndarray, timesteps: np.ndarray, schedule: Schedule, noise: Noise) -> Steps:
    """Algorithm 1 of Karras et al. 2022 with sigma(t) = t and z for x, of order 2; the last step is Euler's.

    A t that `timesteps` lists twice is evaluated twice: at Euler's x_t (line 7), then at the corrected one. The step to
    a t that is listed once stays Euler's.
    """
    ratio_before, eps_before = 0.0, x
    for t, s in pairwise(timesteps.tolist()):
        x0, eps = _x0_and_eps((yield x, t), x, t, schedule)
        ratio = float(schedule.ratio(t))
        if s == t:
            x = x + float(schedule.alpha(t)) * (ratio - ratio_before) / 2 * (eps - eps_before)  # line 8
        else:
            x = float(schedule.alpha(s)) * x0 + float(schedule.sigma(s)) * eps  # line 5
            ratio_before, eps_before = ratio, eps
    return x.astype(np.float32, copy=False)


def _x0_and_eps(prediction: np.ndarray, x: np.ndarray, t: float, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The clean picture and the noise that `prediction` at x_t implies, both (B, C, H, W)."""
    return schedule.to_x0(prediction, x, t), schedule.to_eps(prediction, x, t)


def _exponential_step(x: np.ndarray, t: float, s: float, nodes: Nodes, schedule: Schedule) -> np.ndarray:
    """x_s from x_t by proposition 4.1 of DPM-Solver++, with x0 the polynomial in lambda through all `nodes`.

    x_s = sigma_s / sigma_t x_t + alpha_s int e^(lambda - lambda_s) x0 dlambda, from lambda_t to lambda_s, h further.
    `moments` are this integral with the powers of u = (lambda - lambda_t) / h for x0; the nodes' weights are exact for
    each power. This is UniPC's R a = phi / B, in which B(h) cancels. Two nodes are its exception: a_1 = 1/2 with
    B(h) = e^h - 1 (bh2), as in DPM-Solver++(2M).
    """
    lambda_t, lambda_s, *lambdas = (-math.log(schedule.ratio(node)) for node in (t, s, *(node for node, _ in nodes)))
    h = lambda_s - lambda_t
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k / h * moments[-1])  # by parts
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    u = (np.array(lambdas) - lambda_t) / h
    weights = np.linalg.solve(np.vander(u, increasing=True).T, moments).tolist()
    integral = sum(weight * x0 for weight, (_, x0) in zip(weights, nodes, strict=True))
    return float(schedule.sigma(s) / schedule.sigma(t)) * x + float(schedule.alpha(s)) * integral


# Row k: the weights of the last k + 1 slopes for an even step (Adams-Bashforth of order k + 1), the newest first.
ADAMS_BASHFORTH = [(1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]


@dataclass(frozen=True)
class Sampler:
    """An entry of `SAMPLERS`, with all that differs between samplers: a new one is a function and an entry.

    Attributes:
        solve: the function.
        spacing: the spacing of its evaluations by default, a name in `SPACINGS` (spacing.py).
        twice: it evaluates at every level but the first twice, as `heun` does.
        noisy: it draws noise at every step; it does not solve the ODE.
        takes_eta: `solve` has the parameter `eta`.
    """

    solve: Solve
    spacing: str
    twice: bool = False
    noisy: bool = False
    takes_eta: bool = False

    def levels(self, evaluations: int) -> int:
        """How many noise levels `evaluations` are for; an even number, at two each, ends in a step of Euler's."""
        return evaluations // 2 + 1 if self.twice else evaluations

    def evaluations(self, levels: int) -> int:
        """The most evaluations that `levels` noise levels take: the inverse of `levels`."""
        return 2 * levels - 1 if self.twice else levels


# The spacings are those of the published CIFAR-10 tables; of the papers for ddpm and ddim; of k-diffusion for euler and
# euler-a.
SAMPLERS = {
    "ddpm": Sampler(ddpm, "uniform", noisy=True),
    "ddim": Sampler(ddim, "uniform", takes_eta=True),
    "dpmpp-2m": Sampler(dpmpp_2m, "karras"),
    "dpmpp-3m": Sampler(dpmpp_3m, "log-snr"),
    "unipc": Sampler(unipc, "log-snr"),
    "ipndm": Sampler(ipndm, "karras"),
    "heun": Sampler(heun, "karras", twice=True),
    "euler": Sampler(ddim, "karras"),
    "euler-a": Sampler(partial(ddim, eta=1.0), "karras", noisy=True),
}


def solver(name: str, eta: float = 0.0) -> Solve:
    """The function of a sampler, with `eta` where it takes one. Raises `BadInput`, naming the parameter."""
    name = named("sampler", "sampler", name, SAMPLERS)
    if not 0 <= eta <= 1:
        raise BadInput(f"eta: expected 0 .. 1, found {eta}; 0 is deterministic, 1 is as noisy as ddpm")
    if eta == 0:
        return SAMPLERS[name].solve
    if not SAMPLERS[name].takes_eta:
        takers = " or ".join(other for other, sampler in SAMPLERS.items() if sampler.takes_eta)
        raise BadInput(f"eta: only {takers} takes it, found sampler {name}; set `sampler` to {takers}, or leave it out")
    return partial(SAMPLERS[name].solve, eta=eta)  # type: ignore[call-arg]  # `takes_eta` says that it is one
