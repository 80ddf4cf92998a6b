"""Notes stay what they are, to the order of their entries: old pictures can be made again, old runs resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli.run import main
from cfgdiff.runtime.images import read_note

# A command line, the number of a picture, and its note without the model and the engine.
CASES = [
    (
        "--class cat,dog --guidance 1,2.5 --guidance-interval 0.2,9 --guidance-rescale 0.3 --steps 2 --sampler Euler "
        "--spacing LOG-SNR --seed 18446744073709551615 --n 2",
        1,
        '{"class": "dog", "index": 1, "seed": 18446744073709551615, "steps": 2, "guidance": 2.5, "sampler": "euler", '
        '"spacing": "log-snr", "interval": [0.2, 9.0], "rescale": 0.3}',
    ),
    (
        "--class frog --n 1 --model cifar10-small",  # what the model has as defaults is noted
        0,
        '{"class": "frog", "index": 0, "seed": 0, "steps": 5, "guidance": 4.0, "sampler": "fitted", '
        '"interval": [0.1, 3.0]}',
    ),
    (
        "--class cat,dog --interpolate 1:2 --frames 3 --timesteps 900,20 --guidance 2",
        1,
        '{"class": "cat", "index": 0, "seed": 1, "steps": 2, "guidance": 2.0, "sampler": "dpmpp-2m", '
        '"interval": [0.1, 3.0], "timesteps": [900.0, 20.0], "to": {"class": "dog", "seed": 2, "share": 0.5}}',
    ),
    (
        "--class ship --from p.png --mask m.png --strength 0.4 --sampler ddim --eta 0.5 --steps 4 --threshold 0.99 "
        "--guidance-interval 0,inf --n 1",
        0,
        '{"class": "ship", "index": 0, "seed": 0, "steps": 4, "guidance": 4.0, "sampler": "ddim", '
        '"interval": [0.0, Infinity], "eta": 0.5, "threshold": 0.99, '
        '"from": {"picture": "5f24b2f16026ec7d", "strength": 0.4, "mask": "8cbe8d7302923ebb"}}',
    ),
]


@pytest.mark.parametrize(("line", "i", "expected"), CASES)
def test_a_note_is_what_it_was(
    line: str, i: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray((np.arange(32 * 32 * 3) % 251).astype(np.uint8).reshape(32, 32, 3)).save("p.png")
    Image.fromarray(np.tri(32, dtype=np.uint8) * 255).save("m.png")
    with pytest.raises(SystemExit) as stopped:
        main([*line.split(), "--engine", "cpu", "--precision", "float32", "--threads", "1", "--out", "a"])
    note = read_note(Path("a") / f"{i:04d}.png")
    model = {name: note.pop(name) for name in ("model", "model_sha256", "engine", "precision")}
    assert stopped.value.code == 0 and list(model) == ["model", "model_sha256", "engine", "precision"]
    assert json.dumps(note) == expected
