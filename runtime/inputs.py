"""The check of an engine's inputs, the same for all engines."""

import numpy as np

from .errors import BadInput
from .graph_file import CONDITION_INPUTS


def check_inputs(
    sample: np.ndarray,
    timestep: np.ndarray,
    class_label: np.ndarray,
    guidance: np.ndarray,
    image_shape: tuple[int, int, int],
    condition: tuple[np.ndarray, ...] = (),
    takes_condition: bool = False,
    least: int = 1,
) -> dict[str, np.ndarray]:
    """The inputs of `Engine.predict` by the graph's names for them.

    Args:
        takes_condition: the graph is that of a super-resolution stage.

    Raises:
        BadInput: other shapes and types than the graph's, or fewer than `least` rows.
    """
    inputs = {"sample": sample, "timestep": timestep, "class_label": class_label, "guidance": guidance}
    names = CONDITION_INPUTS if takes_condition else ()
    if len(condition) != len(names):
        expected = f"{len(names)} further inputs ({', '.join(names)})" if names else "no further inputs"
        raise BadInput(f"Expected {expected}, got {len(condition)}")
    inputs |= dict(zip(names, condition, strict=True))
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            expected = "a NumPy array with a row for each picture"
            raise BadInput(f"Expected {expected}, got {type(array).__name__} for input: {name}")
    b = len(sample)
    if b < least:
        raise BadInput(f"Expected at least {least} row, got {b} for input: sample")
    if not len(guidance) <= b:
        raise BadInput(f"Expected at most {b} rows of guidance, got {len(guidance)}")
    pictures, row = (b, *image_shape), (b,)
    shapes = {"sample": pictures, "condition": pictures, "guidance": (len(guidance),)}
    for name, array in inputs.items():
        kind = np.int64 if name == "class_label" else np.float32
        if array.shape != shapes.get(name, row) or array.dtype != kind:
            wanted = f"{np.dtype(kind)} {shapes.get(name, row)}"
            raise BadInput(f"Expected {wanted}, got {array.dtype} {array.shape} for input: {name}")
    return inputs
