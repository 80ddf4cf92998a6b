"""What is read of an ONNX file without the package onnx."""

import random

import pytest

from cfgdiff.runtime import Bundle
from cfgdiff.runtime.graph_file import read_graph


def test_the_packaged_graph_is_described(packaged: Bundle) -> None:
    found = read_graph((packaged.path / "model.onnx").read_bytes())
    pictures, row = (1, [None, 3, 32, 32]), (1, [None])
    assert found.inputs == {"sample": pictures, "timestep": row, "class_label": (7, [None]), "guidance": row}
    assert (
        found.outputs == {"prediction": pictures}
        and found.locations == set()
        and found.metadata["model"] == packaged.name
    )


def test_changed_bytes_are_a_graph_or_a_value_error(packaged: Bundle) -> None:
    data, rng, outcomes = (packaged.path / "model.onnx").read_bytes()[-20_000:], random.Random(0), set()
    for _ in range(300):
        changed = bytearray(data[rng.randrange(2000) :])
        for _ in range(rng.randint(1, 40)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            outcomes.add(type(read_graph(bytes(changed))))
        except ValueError:
            outcomes.add(ValueError)
    assert ValueError in outcomes
    for broken in (b"\xff" * 100, b"\x3a\x05ab", b"\x3b"):
        with pytest.raises(ValueError):
            read_graph(broken)
