"""The check of an engine's inputs, the same for all engines."""

import numpy as np

from .errors import BadInput


def check_inputs(
    sample: np.ndarray,
    timestep: np.ndarray,
    class_label: np.ndarray,
    guidance: np.ndarray,
    image_shape: tuple[int, int, int],
    least: int = 1,
) -> dict[str, np.ndarray]:
    """The inputs of `Engine.predict` by the graph's names for them.

    Raises:
        BadInput: other shapes and types than the graph's, or fewer than `least` rows.
    """
    for name, array in (
        ("sample", sample),
        ("timestep", timestep),
        ("class_label", class_label),
        ("guidance", guidance),
    ):
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise BadInput(
                f"Expected a NumPy array with a row for each picture, got {type(array).__name__} for input: {name}"
            )
    b = len(sample)
    if b < least:
        raise BadInput(f"Expected at least {least} row, got {b} for input: sample")
    if not len(guidance) <= b:
        raise BadInput(f"Expected at most {b} rows of guidance, got {len(guidance)}")
    expected = {
        "sample": (sample, (b, *image_shape), np.float32), "timestep": (timestep, (b,), np.float32),
        "class_label": (class_label, (b,), np.int64), "guidance": (guidance, (len(guidance),), np.float32),
    }  # fmt: skip
    for name, (array, shape, kind) in expected.items():
        if array.shape != shape or array.dtype != kind:
            raise BadInput(f"Expected {np.dtype(kind)} {shape}, got {array.dtype} {array.shape} for input: {name}")
    return {name: entry[0] for name, entry in expected.items()}
