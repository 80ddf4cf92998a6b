"""Divides a graph for OpenVINO's bfloat16: the waves of timesteps and guidance are computed in float32.

In bfloat16 a timestep has 8 bits, so sin(t f) would get another phase. It knows graphs, not engines.
"""

from collections.abc import Iterable, Set
from typing import Any

PICTURES, EXACT = ("sample", "condition"), ("timestep", "guidance", "condition_noise")


def split(openvino: Any, model: Any) -> tuple[Any, Any]:
    """(waves, rest) of a model of fixed shape: `rest` has an input for each output of `waves`, of the same name.

    The waves end where the first product of matrices reads them. A model without such a product is (None, model).
    """
    source = model.clone()
    ports = list(zip(_first_products(model), _first_products(source), strict=True))
    if not ports:
        return None, model
    outputs = []
    for i, (port, read) in enumerate(ports):
        parameter = openvino.op.Parameter(port.get_element_type(), port.get_shape())
        for output in (parameter.output(0), read.get_source_output()):
            output.set_names({f"waves{i}"})
        parameter.set_friendly_name(f"waves{i}")
        port.replace_source_output(parameter.output(0))
        model.add_parameters([parameter])
        outputs.append(read.get_source_output())
    for parameter in _idle(model, model.get_results()):
        model.remove_parameter(parameter)
    idle = {parameter.get_friendly_name() for parameter in _idle(source, [output.get_node() for output in outputs])}
    used = [parameter for parameter in source.get_parameters() if parameter.get_friendly_name() not in idle]
    return openvino.Model(outputs, used), model


def _first_products(model: Any) -> list[Any]:
    """The inputs of matrix products that depend on timestep or guidance by no other product, and not on pictures."""
    pictures, numbers = (
        [parameter for parameter in model.get_parameters() if parameter.get_friendly_name() in names]
        for names in (PICTURES, EXACT)
    )
    waves = _readers(numbers, {"MatMul"}, _readers(pictures))
    return [
        port
        for op in model.get_ordered_ops()
        if op.get_type_name() == "MatMul"
        for port in op.inputs()
        if port.get_source_output().get_node().get_friendly_name() in waves
    ]


def _readers(ops: Iterable[Any], ends: Set[str] = frozenset(), known: Set[str] = frozenset()) -> set[str]:
    """The names of these ops and of all that depend on their values, but not of kinds in `ends` and names `known`."""
    seen, stack = set[str](), list(ops)
    while stack:
        op = stack.pop()
        if op.get_friendly_name() not in seen | known and op.get_type_name() not in ends | {"ShapeOf"}:
            seen.add(op.get_friendly_name())
            stack += [reader.get_node() for output in op.outputs() for reader in output.get_target_inputs()]
    return seen


def _idle(model: Any, ends: Iterable[Any]) -> list[Any]:
    """The parameters that `ends` do not depend on."""
    seen, stack = set[str](), list(ends)
    while stack:
        op = stack.pop()
        if op.get_friendly_name() not in seen:
            seen.add(op.get_friendly_name())
            stack += [value.get_node() for value in op.input_values()]
    return [parameter for parameter in model.get_parameters() if parameter.get_friendly_name() not in seen]
