"""The cost of a call from the shell beside the network's: from a cold process to the last file."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.engine import WrappedEngine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import encoded, grid

from .timing import Case

# It prints its own peak of resident memory at the end: the one its parent reads includes the parent's at the fork.
RUN = """import atexit, re, resource, sys
def print_peak():
    try:
        peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak, file=sys.stderr)
atexit.register(print_peak)
from cfgdiff.cli.run import main
main()"""


class Clock(WrappedEngine):
    """Adds up the time spent inside of an engine."""

    seconds = 0.0

    def predict(self, *inputs: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        started = time.perf_counter()
        prediction = super().predict(*inputs)
        self.seconds += time.perf_counter() - started
        return prediction


def outside_rows(engine: Engine, bundle: Bundle, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """The share of the time that is not the engine's: noise, sampler, conversion, PNGs and their grid, all in
    memory."""
    rows = []
    for n in batches:
        shares = []
        for _ in range(rounds + 1):
            clock, started = Clock(engine), time.perf_counter()
            for _, pictures in generate(clock, bundle, [k % len(bundle.class_names) for k in range(n)], batch=n):
                for picture in [*pictures, grid(pictures)]:
                    encoded(picture)
            shares.append(1 - clock.seconds / (time.perf_counter() - started))
        measured = shares[1:]
        rows.append({"B": n, "outside": statistics.median(measured), "least": min(measured), "largest": max(measured)})
    return rows


def shell_rows(model: Path, counts: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Calls of cfgdiff-run from a cold process to the last file: seconds, and peak resident memory."""
    rows = []
    for n in counts:
        seconds, memory = list[float](), list[float]()
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                flags = {
                    "--model": model,
                    "--class": "all",
                    "--n": n,
                    "--out": Path(folder) / "out",
                    "--threads": threads,
                }
                command = [sys.executable, "-c", RUN, *(str(word) for pair in flags.items() for word in pair)]
                started = time.perf_counter()
                process = subprocess.run(command, capture_output=True, text=True, errors="replace")
                seconds.append(time.perf_counter() - started)
            if process.returncode:
                raise Failure(f"cfgdiff-run --n {n}: fails ({process.stderr.strip()})")
            memory.append(float(process.stderr.split()[-1]) / 1024)
        case = Case(f"cfgdiff-run --n {n}", n, seconds)
        rows.append({"call": case.name, "s": case.median, "spread": case.spread, "MB": max(memory)})
    return rows
