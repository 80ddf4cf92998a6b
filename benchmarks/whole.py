"""What a call costs besides the network, from a cold process to the last file, and where the network's own time goes."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.runtime import Bundle, Engine, generate
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import encoded, grid

from .latency import call_inputs
from .timing import Case

# It says its peak resident memory in the end. (What a parent is told of its child's counts the parent's own before the child began.)
RUN = """import atexit, re, resource, sys
def tell():
    try:
        peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak, file=sys.stderr)
atexit.register(tell)
from cfgdiff.cli.run import main
main()"""


class Clock:
    """An engine that adds up the time spent inside of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.seconds = engine, 0.0
        self.name, self.precision, self.max_batch = engine.name, engine.precision, engine.max_batch

    def predict(self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray) -> np.ndarray:
        """See `Engine.predict`."""
        started = time.perf_counter()
        answer = self.engine.predict(sample, timestep, class_label, guidance)
        self.seconds += time.perf_counter() - started
        return answer

    def close(self) -> None:
        """It is not ours to close."""


def outside_rows(engine: Engine, bundle: Bundle, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """The share of the time that is not the engine's: noise, sampler, conversion, PNGs and their grid, all in memory."""
    rows = []
    for n in batches:
        shares = []
        for i in range(rounds + 1):
            clock, started = Clock(engine), time.perf_counter()
            for _, pictures in generate(clock, bundle, [k % len(bundle.class_names) for k in range(n)], batch=n):
                for picture in [*pictures, grid(pictures)]:
                    encoded(picture)
            spent = time.perf_counter() - started
            if i:
                shares.append(1 - clock.seconds / spent)
        rows.append({"B": n, "outside": statistics.median(shares), "least": min(shares), "largest": max(shares)})
    return rows


def shell_rows(model: Path, counts: list[int], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Whole calls of cfgdiff-run, from a cold process to the last file: seconds, and peak resident memory."""
    rows = []
    for n in counts:
        seconds, memory = list[float](), list[float]()
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                flags = {"--model": model, "--class": "all", "--n": n, "--out": Path(folder) / "out", "--threads": threads}
                command = [sys.executable, "-c", RUN, *(str(word) for pair in flags.items() for word in pair)]
                started = time.perf_counter()
                made = subprocess.run(command, capture_output=True, text=True, errors="replace")
                seconds.append(time.perf_counter() - started)
            if made.returncode:
                raise Failure(f"cfgdiff-run --n {n}: fails ({made.stderr.strip()})")
            memory.append(float(made.stderr.split()[-1]) / 1024)
        case = Case(f"cfgdiff-run --n {n}", n, seconds)
        rows.append({"call": case.name, "s": case.median, "spread": case.spread, "MB": max(memory)})
    return rows


def operators(graph: Path, bundle: Bundle, n: int, threads: int) -> list[dict[str, Any]]:
    """Where a call's time goes on ONNX Runtime's CPU provider: the share of each kind of node, largest first, of n guided pictures."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling = threads, True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        names = ("sample", "timestep", "class_label", "guidance")
        inputs = dict(zip(names, call_inputs(bundle, n, n), strict=True))
        for _ in range(3):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] = spent.get(kind, 0.0) + event["dur"]
    total = sum(spent.values())
    return [{"operator": kind, "share": value / total} for kind, value in sorted(spent.items(), key=lambda item: -item[1])]
