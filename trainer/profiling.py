"""Where the time of a training step goes. Trains a few steps and writes nothing."""

import time

from torch.profiler import ProfilerActivity, profile

from .loop import steps as training_steps
from .run import Run

# As the loop marks them; `update` is optimisers and averages.
PHASES = ("data", "forward", "backward", "update", "callbacks")


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
    averages, batch = profiler.key_averages(), run.config.train.batch
    rate = steps * batch / spent
    lines = [f"{spent / steps:.3f} s a step, {rate:.1f} pictures/s over {steps} steps (profiling on)", ""]
    phases = {name: 0.0 for name in PHASES} | {e.key: e.cpu_time_total / 1e6 for e in averages if e.key in PHASES}
    lines += [f"{name:<12}{phases[name] / steps:9.4f} s{phases[name] / spent:7.1%}" for name in PHASES]
    lines += ["", "the ten operators that take most:"]
    kind = "self_device_time_total" if cuda else "self_cpu_time_total"
    operators = sorted((getattr(e, kind), e.key[:44], e.count) for e in averages if e.key not in PHASES)
    lines += [f"{name:<46}{own / 1e6 / steps:9.4f} s{n / steps:8.1f} calls" for own, name, n in operators[:-11:-1]]
    return "\n".join(lines)
