"""TensorRT-RTX builds engines for 64x64 and 128x128, and for the two more inputs of a super-resolution stage."""

import hashlib
import warnings
from pathlib import Path

import pytest
from stages import random_model

from cfgdiff.export.tensorrt import build_engine, find_module, plan_key
from cfgdiff.runtime.graph_file import read_graph
from cfgdiff.runtime.sidecar import read_sidecar, sidecar_of

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")


@pytest.mark.parametrize(("size", "stage"), [(64, False), (64, True), (128, True)])
def test_an_engine_is_built_for_all_inputs_at_its_size(tmp_path: Path, size: int, stage: bool) -> None:
    from cfgdiff.export.graph import build_graph

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter
        graph = build_graph(random_model(size, 4, stage).network, 3, (3, size, size)).SerializeToString()
    module = find_module()
    key = plan_key(module, hashlib.sha256(graph).hexdigest(), "float32", (1, 4, 8), ("8.9",))
    built = build_engine(module, graph, key, tmp_path, lambda phase, done, total: None)
    assert built.path.stat().st_size > 50_000 and read_sidecar(sidecar_of(built.path)).key == key
    # TensorRT builds no network with an input that has no profile, and the graph's are dynamic.
    inputs = read_graph(graph).inputs
    assert all(shape[0] is None for _, shape in inputs.values()) and ("condition" in inputs) == stage
