"""What a bundle knows of its own quality: `cfgdiff eval --store` keeps a distance for each number of evaluations."""

from .bundle import DAMAGE, Bundle
from .plan import Plan

SLACK = 1.5  # times the least distance: pictures of more are visibly worse


def distances(bundle: Bundle) -> dict[int, float]:
    """The Fréchet distance by the number of evaluations, at the bundle's guidance; {} where it was not measured."""
    try:
        rows = [row for row in bundle.evaluation.get("sweep", ()) if row["varied"] == "evaluations"]
        return {int(row["evaluations"]): float(row["frechet"]) for row in rows}
    except DAMAGE:
        return {}


def doubt(bundle: Bundle, plan: Plan) -> str:
    """Why so few evaluations are not advisable, in a line; empty where nothing speaks against them."""
    known = distances(bundle)
    good = [steps for steps, distance in known.items() if distance <= SLACK * min(known.values())]
    steps = plan.course.evaluations
    if not good or steps >= min(good):
        return ""
    found = f"Fréchet distance {known[steps]:.1f}" if steps in known else "not measured"
    least = f"{min(good)} steps have {known[min(good)]:.1f}"
    return f"`steps` {steps}: {bundle.name} is not made for so few ({found}; {least})"
