"""Scaling: what a picture costs by the number of pictures, the batch, the evaluations and the size.

Networks of other sizes are untrained ones of the same family.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cfgdiff.runtime import Bundle, Engine, generate, open_engine
from cfgdiff.runtime.bundle import Defaults, Variant

from .machine import limit_of, operations
from .timing import interleaved

USUAL = {"pictures": 16, "batch": 16, "evaluations": 4}  # of these, one is changed at a time
VARIED = {"pictures": (4, 16, 32), "batch": (1, 4, 16), "evaluations": (2, 4, 8)}


@contextmanager
def of_size(size: int) -> Iterator[Bundle]:
    """An untrained network like the packaged one's, for pictures of another size."""
    import torch

    from cfgdiff.export.edit import save_graph
    from cfgdiff.export.graph import build_graph
    from cfgdiff.trainer.build import make_network
    from cfgdiff.trainer.config import load_preset, make_config

    config = make_config(load_preset("cifar10-small"), (f"train.image_size={size}",))
    shape, classes = (3, size, size), list("abcdefghij")
    torch.manual_seed(0)
    network = make_network(config, shape, len(classes)).eval().requires_grad_(False)
    for p in network.parameters():  # many start at zero, and the export would leave out all that they multiply
        torch.nn.init.normal_(p, std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        save_graph(build_graph(network, len(classes), shape), graph)
        variant = Variant(graph.name, "float32", {graph.name: hashlib.sha256(graph.read_bytes()).hexdigest()})
        defaults = Defaults("ddim", USUAL["evaluations"], 4.0, None)
        described = (f"untrained-{size}", classes, shape, config.schedule, defaults)
        yield Bundle(*described, path=Path(folder), variants={"float32": variant})


def scaling_rows(
    engine: Engine, bundle: Bundle, threads: int, sizes: list[int], rounds: int, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """Milliseconds a picture and evaluation, guided, with one thing changed at a time, and the share of the matrix
    product's peak, None where that of the engine's precision is not known."""
    rows = []

    def add(varied: str, value: int, engine: Engine, bundle: Bundle) -> None:
        n, batch, steps = (value if varied == name else usual for name, usual in USUAL.items())
        labels = [k % len(bundle.class_names) for k in range(n)]

        def draw() -> object:
            return [None for _ in generate(engine, bundle, labels, steps, sampler="ddim", batch=batch)]

        case = interleaved({varied: draw}, rounds, n)[varied]
        each = case.median / n / steps
        work = operations(bundle.path / bundle.variants["float32"].graph, 1, 1)
        limit = limit_of(engine.precision, peaks)
        rows.append({"varied": varied, "value": value, "ms": 1e3 * each, "spread": case.spread,
                     "of peak": work / each / limit if limit else None})  # fmt: skip

    for varied, values in VARIED.items():
        for value in values:
            add(varied, value, engine, bundle)
    for size in sizes:
        with of_size(size) as other, closing(open_engine(other, "cpu", threads=threads)) as opened:
            add("size", size, opened, other)
    return rows


def bound(row: dict[str, Any], best: float) -> str:
    """What bounds a row of `scaling_rows`: compute, from half of the peak on; else overhead, where `best`, the largest
    share of the peak at this size, is 1.2 times as large; else memory. A dash where the share is not known."""
    if row["of peak"] is None:
        return "-"
    if row["of peak"] >= 0.5:
        return "compute"
    return "overhead" if best >= 1.2 * row["of peak"] else "memory"
