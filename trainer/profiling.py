"""Where the time of a training step goes. Trains a few steps and writes nothing."""

import time

from torch.profiler import ProfilerActivity, profile

from .loop import steps as training_steps
from .run import Run

PHASES = (
    "data",
    "forward",
    "backward",
    "update",
    "callbacks",
)  # as the loop marks them; `update` is optimisers and averages


def profile_steps(run: Run, steps: int = 10, warm_up: int = 3) -> str:
    """Train `steps` steps after `warm_up` unmeasured ones, with callbacks; returns a table of phases and operators."""
    losses = training_steps(run)
    for _ in range(warm_up):
        next(losses)
    cuda = run.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])) as profiler:
        started = time.monotonic()
        for _ in range(steps):
            next(losses)
        spent = time.monotonic() - started
    losses.close()
    averages = profiler.key_averages()
    lines = [
        f"{spent / steps:.3f} s a step, {steps * run.config.train.batch / spent:.1f} pictures/s over {steps} steps "
        "(profiling on)",
        "",
    ]
    phases = {event.key: event.cpu_time_total / 1e6 for event in averages if event.key in PHASES}
    lines += [
        f"{name:<12}{phases.get(name, 0.0) / steps:9.4f} s{phases.get(name, 0.0) / spent:7.1%}" for name in PHASES
    ]
    lines += ["", "the ten operators that take most:"]
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    operators = sorted((event for event in averages if event.key not in PHASES), key=lambda event: -getattr(event, own))
    lines += [
        f"{event.key[:44]:<46}{getattr(event, own) / 1e6 / steps:9.4f} s{event.count / steps:8.1f} calls"
        for event in operators[:10]
    ]
    return "\n".join(lines)
