"""How to draw pictures with the graph alone, in words and formulas, for use from other languages."""

from collections.abc import Sequence

from cfgdiff.runtime.schedule import MAX_BETA, OFFSET, Schedule

ALPHA_BAR = {
    "cosine": "alpha_bar(t) = max(f(t), f(T - 1) * {least:g}) / f(0), "
              "f(t) = cos((t / T + {offset}) / {stretch} * pi / 2)^2",
    "linear": "ln alpha_bar(t) = sum over i = 1 .. t of ln(1 - beta_i), linear in between, "
              "beta_i = 1e-4 .. 0.02 in T even steps, times 1000 / T, at most {most}",
}  # fmt: skip
CLEAN = {
    "v": "x0 = alpha * x - sigma * P, eps = sigma * x + alpha * P",
    "eps": "x0 = (x - sigma * P) / alpha, eps = P",
    "x0": "x0 = P, eps = (x - alpha * P) / sigma",
}


def inputs(
    classes: int,
    T: int,  # noqa: N803
    trained: Sequence[float] | None = None,
    factor: int | None = None,
) -> dict[str, str]:
    """The graph's inputs and output, by name, in words.

    Args:
        trained: the range of a w that is an input of the network.
        factor: by which a super-resolution stage enlarges.
    """
    guided = (
        f"uncond + w (cond - uncond), uncond for the null class {classes}, computed inside; "
        "w = 1 is plain cond; rows G .. B-1 are cond, at half the cost"
    )
    if trained:
        guided = f"guided by w, {trained[0]:g} .. {trained[1]:g}, an input of the network; rows G .. B-1 have w = 1"
    further = {
        "condition": f"the picture that is enlarged {factor} times, noised and enlarged (B, C, H, W), see below",
        "condition_noise": f"s of each row (B,), 0 .. {T}: the timestep whose noise the smaller picture has",
    }  # fmt: skip
    return {
        "sample": "x_t, noised pictures (B, C, H, W); at t = T standard normal noise",
        "timestep": f"t of each row (B,), 0 .. {T}, fractional allowed; rows may differ",
        "class_label": f"class of each row (B,), 0 .. {classes - 1}; {classes} is the null class, "
                       "for a prediction without a class",
        "guidance": f"w of the first G rows (G,), 0 <= G <= B (the graph fails for more): their prediction is {guided}",
        **(further if factor else {}),
        "prediction": "the network's prediction P for each row (B, C, H, W)",
    }  # fmt: skip


def recipe(
    schedule: Schedule,
    evaluations: int,
    guidance: float,
    timesteps: Sequence[float] | None = None,
    factor: int | None = None,
) -> list[str]:
    """DDIM (Song et al. 2021) with this graph, a step a line, at the `timesteps` that a network was trained for.

    Args:
        factor: by which a super-resolution stage enlarges; it begins with the smaller picture.
    """
    where = f"t_i = T (N - i) / N for i = 0 .. N, with N evaluations, as {evaluations} or 20"
    if timesteps:
        listed = ", ".join(f"{t:g}" for t in timesteps)
        where = f"t_i = {listed} for i = 0 .. N, N = {evaluations}, and no others (bundle.json has those of other N)"
    alpha_bar = ALPHA_BAR[schedule.kind].format(least=1 - MAX_BETA, offset=OFFSET, stretch=1 + OFFSET, most=MAX_BETA)
    enlarge = (
        f"condition = (alpha * z / {schedule.data_std:g} + sigma * normal noise), alpha and sigma at s, for the "
        f"smaller picture z in -1 .. 1, enlarged {factor} times: bilinear, half-pixel centres, twofold at a time."
    )
    return [
        f"T = {schedule.T}; {alpha_bar}; alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar).",
        *([enlarge] if factor else []),
        f"x = standard normal noise (B, C, H, W); {where}.",
        "For i = 0 .. N-1: P = prediction for sample x, timestep t_i, the class and guidance "
        f"(all rows w, as {guidance:g}).",
        f"With alpha, sigma at t_i: {CLEAN[schedule.prediction]}. "
        "Then x = alpha * x0 + sigma * eps with alpha, sigma at t_(i+1).",
        f"At t = 0 x is x0. Pixels: round((clip(x * {schedule.data_std:g}, -1, 1) + 1) * 127.5), channels first.",
    ]
