"""Writes a model repository for Triton Inference Server: a bundle's network, and a Python model that draws with it.

The network is one of the bundle's graphs, as it is. Triton joins requests along the first dimension of every input, so
`guidance` has a row for each picture (G = B), and w = 1 is a picture without. This needs neither PyTorch nor onnx.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.files import cannot_write, replace_folder, restore_folder
from cfgdiff.runtime.sidecar import build_command, check_certificate, check_file, engines_beside, graph_digest

MODEL = Path(__file__).with_name("triton_model.py")  # 1/model.py
MOST_ROWS = 256  # pictures in a call of a graph; a TensorRT engine has its own number
MOST_STEPS = 1000  # of a request: one that takes hours would hold up others
NETWORK = Template("""\
# The network of $model, a call for each step. All inputs have a row for each picture.
name: $name
backend: "$backend"
max_batch_size: $most
input [
  { name: "sample"      data_type: TYPE_FP32  dims: [ $chw ] },
  { name: "timestep"    data_type: TYPE_FP32  dims: [ 1 ]  reshape { shape: [ ] } },
  { name: "class_label" data_type: TYPE_INT64 dims: [ 1 ]  reshape { shape: [ ] } },
  { name: "guidance"    data_type: TYPE_FP32  dims: [ 1 ]  reshape { shape: [ ] } }
]
output [ { name: "prediction" data_type: TYPE_FP32 dims: [ $chw ] } ]
# Calls of several instances of $model come together in this time.
dynamic_batching { max_queue_delay_microseconds: 500 }
# Without instance_group Triton puts an instance on every GPU.
""")
TF32 = """\
# Float32 on GPUs too: TF32 keeps 10 bits of its 23.
optimization { execution_accelerators { gpu_execution_accelerator: [
  { name: "cuda" parameters { key: "use_tf32" value: "0" } }
] } }
"""
LOOP = Template("""\
# Draws a picture for each row of a request; rows are independent of each other. `class_label` is a number of
# `class_names`; `steps` is the same for all rows of a request.
name: $model
backend: "python"
max_batch_size: $most
input [
  { name: "class_label" data_type: TYPE_INT64  dims: [ 1 ] },
  { name: "seed"        data_type: TYPE_UINT64 dims: [ 1 ] },
  { name: "index"       data_type: TYPE_UINT64 dims: [ 1 ]  optional: true },
  { name: "guidance"    data_type: TYPE_FP32   dims: [ 1 ]  optional: true },
  { name: "steps"       data_type: TYPE_INT32  dims: [ 1 ]  optional: true }
]
output [ { name: "picture" data_type: TYPE_UINT8 dims: [ $hwc ] } ]
dynamic_batching { }
# Processes, each with one call of the network at a time.
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "network" value { string_value: $name } }
parameters { key: "precision" value { string_value: "$precision" } }
parameters { key: "most_steps" value { string_value: "$most_steps" } }
parameters { key: "class_names" value { string_value: $class_names } }
""")


@dataclass(frozen=True)
class Network:
    """What Triton runs: `files` by their names in the repository, and the most pictures in a call."""

    backend: str
    files: dict[str, Path]
    most: int


def write_repository(bundle: Bundle, target: Path, precision: str = "float32", tensorrt: bool = False) -> list[str]:
    """Write a model repository, whole or not at all.

    Args:
        target: a new or an empty folder.
        precision: of the bundle's variant, or of the TensorRT engine.
        tensorrt: take the engine beside the bundle instead of the graph.

    Returns:
        The names of the models: the one that draws, and its network.

    Raises:
        Failure: `target` is not empty or cannot be written, or the bundle has no such variant or engine.
    """
    if not re.fullmatch(r"\w[\w.-]*", bundle.name):
        allowed, how = "letters, digits, '.', '_' and '-'", f"cfgdiff export --from-bundle {bundle.path} --out NAME"
        raise Failure(f"{bundle.path}: in Triton names have {allowed}, found {bundle.name!r}; give it another: {how}")
    network = _engine(bundle, precision) if tensorrt else _graph(bundle, precision)
    names = [bundle.name, f"{bundle.name}_network"]
    try:
        restore_folder(target)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise Failure(f"{target}: exists and is not empty; choose another folder, and move the models from there")
        with replace_folder(target) as folder:
            _write_network(folder / names[1] / "1", network)
            _write_loop(folder / names[0] / "1", bundle)
            for name, config in zip(names, _configs(bundle, network, precision), strict=True):
                (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
    except OSError as error:
        raise cannot_write(target, error) from None
    return names


def _graph(bundle: Bundle, precision: str) -> Network:
    if precision not in bundle.variants:
        how = f"cfgdiff export --from-bundle {bundle.path} --{precision.replace('float', 'fp')} --out NEW adds it"
        raise Failure(f"{bundle.path}: has no {precision} variant, only {', '.join(bundle.variants)}; {how}")
    variant = bundle.variants[precision]
    others = {name: bundle.path / name for name in variant.files if name != variant.graph}  # weights outside of it
    return Network("onnxruntime", {"model.onnx": bundle.path / variant.graph} | others, MOST_ROWS)


def _engine(bundle: Bundle, precision: str) -> Network:
    """The engine that Triton can load: of TensorRT, not of TensorRT-RTX, and for calls of one picture and more."""
    digests = {name: graph_digest(variant) for name, variant in bundle.variants.items()}
    fitting = [
        engine
        for engine in engines_beside(bundle.path)
        if (engine.key.module, engine.key.precision) == ("tensorrt", precision)
        and engine.key.graph == digests.get(precision)
        and engine.key.profile[0] == 1
    ]
    if not fitting:
        what = f"no {precision} engine of TensorRT for batches from 1 on (Triton loads none of TensorRT-RTX)"
        raise Failure(f"{bundle.path}: {what}; with the TensorRT of its container: {build_command(bundle.path)}")
    engine = fitting[-1]
    check_file(engine)
    if engine.certificate is not None:  # without one, its GPU may be elsewhere
        check_certificate(engine)
    return Network("tensorrt", {"model.plan": engine.path}, engine.key.profile[2])


def _write_network(folder: Path, network: Network) -> None:
    folder.mkdir(parents=True)
    for name, source in network.files.items():
        shutil.copyfile(source, folder / name)


def _write_loop(folder: Path, bundle: Bundle) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(MODEL, folder / "model.py")
    shutil.copyfile(bundle.path / "bundle.json", folder / "bundle.json")


def _configs(bundle: Bundle, network: Network, precision: str) -> tuple[str, str]:
    """config.pbtxt of the model that draws, and of its network."""
    c, h, w = bundle.image_shape
    values = {
        "model": _quoted(bundle.name), "name": _quoted(f"{bundle.name}_network"), "backend": network.backend,
        "precision": precision, "most": network.most, "most_steps": MOST_STEPS, "chw": f"{c}, {h}, {w}",
        "hwc": f"{h}, {w}, {c}", "class_names": _quoted(json.dumps(bundle.class_names, ensure_ascii=False)),
    }  # fmt: skip
    described = NETWORK.substitute(values | {"model": bundle.name})
    return LOOP.substitute(values), described + (TF32 if network.backend == "onnxruntime" else "")


def _quoted(text: str) -> str:
    """A string of protobuf's text format, which has JSON's escapes for what such texts hold."""
    return json.dumps(text, ensure_ascii=False)
