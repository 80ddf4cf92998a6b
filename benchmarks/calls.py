"""One call of the network: on every engine that works here, against the machine's matrix product, and where its time
goes."""

import json
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cfgdiff.export.certify import candidates
from cfgdiff.export.markdown import table
from cfgdiff.runtime import Bundle, Engine
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.noise import normals

from .machine import limit_of, operations
from .timing import interleaved

BASE = "cpu float32"


def open_all(
    bundle: Bundle, stack: ExitStack, threads: int | None = None
) -> tuple[dict[str, Engine], dict[str, list[str]]]:
    """Every engine that opens here, by name, closed with `stack`; and the names of the others by the reason why they do
    not open."""
    opened, reasons = dict[str, Engine](), dict[str, list[str]]()
    for candidate in candidates(bundle, threads=threads):
        try:
            opened[candidate.name] = stack.enter_context(closing(candidate.open(True)))
        except Failure as error:
            reasons.setdefault(str(error), []).append(candidate.name)
    return opened, reasons


def call_inputs(bundle: Bundle, b: int, g: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `Engine.predict` for b rows of all classes in the middle of the schedule, of which g are
    guided."""
    return (normals(0, np.arange(b), 0, bundle.image_shape), np.full(b, bundle.schedule.T / 2, np.float32),
            np.arange(b) % len(bundle.class_names), np.full(g, bundle.defaults.guidance, np.float32))  # fmt: skip


def call_rows(engines: dict[str, Engine], bundle: Bundle, batches: list[int], rounds: int,
              peaks: dict[str, float]) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each engine, batch B that it can take, and G in (0, B): the time of a call, operations a second, their
    share of the peak of the matrix product (None where it was not measured), and how many times as fast as `BASE` it is
    (None without `BASE`)."""
    rows = []
    for b, g in [(batch, guided) for batch in batches for guided in (0, batch)]:
        inputs, work = (
            call_inputs(bundle, b, g),
            operations(bundle.path / bundle.variants["float32"].graph, b, g, bundle.rows(b, g)),
        )
        able = {name: engine for name, engine in engines.items() if b <= engine.max_batch}
        cases = interleaved({name: partial(engine.predict, *inputs) for name, engine in able.items()}, rounds, b)
        for name, case in cases.items():
            limit, speed = limit_of(able[name].precision, peaks), work / case.median
            rows.append({"engine": name, "B": b, "G": g, "ms": 1e3 * case.median, "spread": case.spread,
                         "gflops": speed / 1e9, "of peak": speed / limit if limit else None,
                         "times float32": case.times(cases[BASE]) if BASE in cases else None})  # fmt: skip
    return rows


def call_table(rows: list[dict[str, Any]]) -> str:
    """Markdown of `call_rows`."""
    heads = ["B", "G", "engine", "ms", "GFLOP/s", "of the matrix product", f"times {BASE}"]
    return table(heads, [
        [row["B"], row["G"], row["engine"], f"{row['ms']:.2f} ({row['spread']})", f"{row['gflops']:.0f}", share(row),
         "-" if row["times float32"] is None else f"{row['times float32']:.2f}"] for row in rows
    ])  # fmt: skip


def share(row: dict[str, Any]) -> str:
    """A row's share of the peak, as text."""
    return "-" if row["of peak"] is None else f"{row['of peak']:.0%}"


def operators(graph: Path, bundle: Bundle, n: int, threads: int) -> list[dict[str, Any]]:
    """The share of each kind of node in the time of a call on ONNX Runtime's CPU provider, largest first, for n guided
    pictures."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling = threads, True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        inputs = dict(zip(("sample", "timestep", "class_label", "guidance"), call_inputs(bundle, n, n), strict=True))
        for _ in range(3):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    seconds: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            seconds[kind] = seconds.get(kind, 0.0) + event["dur"]
    total = sum(seconds.values())
    return [
        {"operator": kind, "share": value / total} for kind, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
