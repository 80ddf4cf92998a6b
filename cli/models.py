"""The table of the packaged models, for `cfgdiff models`."""

import numpy as np

from cfgdiff.export import markdown
from cfgdiff.runtime import Bundle, Plan, Request, resolve
from cfgdiff.runtime.speeds import MANY, speeds

HEADS = ["model", "MB", "steps", "rows a picture", "Fréchet distance", "class accuracy", "pictures/s here"]


def table(bundles: list[Bundle]) -> str:
    """A row for each bundle. Speeds are those that were measured before: listing takes no time."""
    return markdown.table(HEADS, [_row(bundle) for bundle in bundles])


def rows_a_picture(plan: Plan) -> int:
    """Rows of the network that one guided picture of a plan takes: guided evaluations may take two."""
    levels, (lo, hi) = plan.bundle.schedule.ratio(plan.course.timesteps[:-1]), plan.guidance.limits
    return sum(plan.bundle.rows(1, int(guided)) for guided in (lo <= levels) & (levels <= hi))


def _row(bundle: Bundle) -> list[str]:
    size = sum(
        file.stat().st_size for variant in bundle.variants.values() for file in map(bundle.path.joinpath, variant.files)
    )
    plan, evaluation = resolve(bundle, Request([0])), bundle.evaluation
    frechet = evaluation.get("quality", {}).get("frechet", {}).get("mean")
    accuracy = evaluation.get("class accuracy")
    usable = [speed.many for speed in speeds(bundle, kept_only=True) if speed.certified and speed.many]
    seconds = min(usable, default=np.inf) / MANY * rows_a_picture(plan) / bundle.rows(1, 1)
    return [
        bundle.name, f"{size / 1e6:.1f}", str(plan.steps), str(rows_a_picture(plan)),
        "-" if frechet is None else f"{frechet:.2f}", "-" if accuracy is None else f"{accuracy:.1%}",
        f"{1 / seconds:.0f}" if usable else "not measured: cfgdiff engines " + bundle.name,
    ]  # fmt: skip
