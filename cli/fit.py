"""`cfgdiff fit-steps`: few evaluations that come close to many."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .flags import INTERVAL, Numbers
from .train import PATH

if TYPE_CHECKING:
    import numpy as np

    from cfgdiff.runtime import Bundle


@click.command(
    epilog="""\b
Examples:
  cfgdiff fit-steps exported/small
  cfgdiff fit-steps exported/small --steps 5,10 --guidance 2
  cfgdiff fit-steps exported/small --guidance 6 --guidance-interval 0.1,3
  cfgdiff fit-steps exported/cascade/stage-1 --steps 3,4,6"""
)
@click.argument("bundle", type=PATH, required=False)
@click.option("--steps", default="4,6,8,10", show_default=True, metavar="N[,N...]",
              type=Numbers("N[,N...] as in 4,6,8,10", number=int), help="Numbers of evaluations to fit.")  # fmt: skip
@click.option("--guidance", type=float, help="Guidance w to fit for, and to use the steps at. Default: the model's.")
@click.option("--guidance-interval", "interval", metavar="LO,HI", type=INTERVAL,
              help="Of sigma / alpha, where w acts, and to use the steps with. Default: the model's.")  # fmt: skip
@click.option("--n", "pictures", default=128, show_default=True, type=click.IntRange(min=8), help="Pictures to fit to.")
@click.option("--teacher-steps", default=60, show_default=True, type=click.IntRange(min=3),
              help="Evaluations of the teacher: dpmpp-2m.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: the engine's choice.")
def fit_steps(bundle: Path | None, steps: tuple[int, ...], guidance: float | None, interval: tuple[float, float] | None,
              pictures: int, teacher_steps: int, threads: int | None) -> None:  # fmt: skip
    """Fit timesteps and a solver's coefficients to a bundle's model, so that few evaluations draw what many would.

    They are stored in the bundle (by default cifar10-small), and `cfgdiff-run --steps N` then takes them. The
    printed error is measured on other pictures than those of the fit. Of a cascade these are the base's steps; those
    of a stage are fitted in its own folder, on pictures that the cascade draws below it.
    """
    from cfgdiff.export.description import store_fitted
    from cfgdiff.export.fit import fit_steps as fit
    from cfgdiff.export.fit import total_evaluations
    from cfgdiff.runtime import Request, load_bundle, open_engine
    from cfgdiff.runtime.errors import Failure
    from cfgdiff.runtime.plan import guidance_of

    from .opening import check_many_steps

    loaded, wanted = load_bundle(bundle).models[0], sorted(set(steps))
    check_many_steps(loaded, "fitting finds others")
    if not 1 <= wanted[0] <= wanted[-1] < teacher_steps:
        given = ", ".join(map(str, steps))
        raise click.UsageError(
            f"--steps: expected numbers from 1 to less than --teacher-steps {teacher_steps}, found {given}"
        )
    guided = guidance_of(loaded, Request([], guidance=guidance, interval=interval))
    if not os.access(loaded.path, os.W_OK | os.X_OK):
        raise Failure(f"{loaded.path}: cannot be written, but the result is kept there; give a copy of the bundle")
    engine, low = open_engine(loaded, "cpu", "float32", threads), _to_enlarge(loaded, pictures, threads)
    total = total_evaluations(wanted, pictures, teacher_evaluations=teacher_steps)
    with click.progressbar(length=total, label="fitting", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        fits = fit(
            engine, loaded, wanted, pictures, teacher_evaluations=teacher_steps, guidance=guided, watch=bar.update,
            low=low,
        )  # fmt: skip
    store_fitted(loaded, {n: result.fitted for n, result in fits.items()})
    click.echo(f"mean squared error to {teacher_steps} evaluations of dpmpp-2m, on other pictures: fitted, dpmpp-2m")
    for n, result in fits.items():
        click.echo(f"{n:>4} evaluations: {result.error:.5f}, {result.plain_error:.5f}")


def _to_enlarge(stage: "Bundle", pictures: int, threads: int | None) -> "np.ndarray | None":
    """The pictures that a cascade draws below one of its stages; None for a model that enlarges nothing."""
    from cfgdiff.export.fit import HELD_OUT, SEED
    from cfgdiff.runtime import draw, load_bundle, open_engine

    if stage.condition is None:
        return None
    below = load_bundle(stage.path.parent).up_to(stage.image_shape[1] // stage.condition.factor)
    with open_engine(below, "cpu", "float32", threads) as engine:
        classes = [i % len(below.class_names) for i in range(pictures + HELD_OUT)]
        return draw(below, classes, engine, seed=SEED)
