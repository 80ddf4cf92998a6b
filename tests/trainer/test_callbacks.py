"""What callbacks write is what they measured; none of them changes the weights; plugins' callbacks join in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.trainer.build import add_callbacks
from cfgdiff.trainer.build import new_run as create
from cfgdiff.trainer.callbacks import Best, Log, Meter, Preview, TensorBoard, Validation, training_flops
from cfgdiff.trainer.checkpoint import read_checkpoint
from cfgdiff.trainer.config import make_config
from cfgdiff.trainer.data import load_data
from cfgdiff.trainer.loop import train
from cfgdiff.trainer.objective import held_out_errors
from cfgdiff.trainer.run import Run
from cfgdiff.trainer.start import resume


def new_run(tree: dict, data: Path, out: Path, *overrides: str) -> Run:
    config = make_config(tree, overrides)
    return create(config, load_data(data, config.train.image_size), out, "cfgdiff train", None)


def lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]


def test_callbacks_do_not_change_the_weights(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    plain, full = (new_run(tiny_tree, picture_folder, tmp_path / name) for name in ("plain", "full"))
    full.callbacks += [
        Meter(full, seconds=0),
        Validation(full, seconds=0),
        Preview(full, seconds=0, steps=2),
        Log(full),
    ]
    train(plain)
    train(full)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.ema.network.parameters(), full.ema.network.parameters(), strict=True)
    )


def test_the_log_holds_what_was_measured(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.callbacks += [Meter(run, seconds=0), Validation(run, seconds=1000), Log(run)]
    train(run)
    found = lines(run)
    losses = [line["loss"] for line in found if "loss" in line]
    assert [line["pictures"] for line in found if "loss" in line] == list(range(8, 97, 8)) and all(
        0 < v < 10 for v in losses
    )
    measured = next(line for line in found if "test_loss" in line)
    assert measured["pictures"] == 96 and measured["test_loss"] == pytest.approx(run.test_loss)
    levels, errors = held_out_errors(run.predict, run.config.schedule, run.data.test_pictures, run.data.test_labels)
    assert run.test_loss == pytest.approx(errors.mean())
    nearest = np.clip(np.rint(levels), -3, 2)
    for level in np.unique(nearest):
        assert measured[f"test_loss/level {int(level):+d}"] == pytest.approx(errors[nearest == level].mean())


def test_a_resumed_log_drops_what_the_checkpoint_does_not_know(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.out.mkdir()
    (run.out / "log.jsonl").write_text('{"pictures": 8}\n{"pictures": 16}\n{"pictures": 24}\n{"pict')
    run.pictures_seen = 16
    Log(run).metrics(run, {"loss": 1.5})
    assert [line["pictures"] for line in lines(run)] == [8, 16, 16] and lines(run)[-1]["loss"] == 1.5


def test_a_log_that_cannot_be_written_is_told(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    log = Log(run)
    run.out.mkdir()
    (run.out / "log.jsonl").mkdir()
    with pytest.raises(Failure, match=r"log.jsonl: cannot be written .*make room, then resume"):
        log.metrics(run, {"loss": 1.0})


def test_previews_are_a_column_a_class_from_the_same_noise(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    preview = Preview(run, rows=2, steps=2)
    preview.end(run, True)
    first = (run.out / "previews" / "000000000.png").read_bytes()
    preview.end(run, True)
    assert (run.out / "previews" / "000000000.png").read_bytes() == first
    with Image.open(run.out / "previews" / "000000000.png") as picture:
        assert picture.size == (3 * 18 + 2, 2 * 18 + 2)
    preview.end(run, False)
    run.pictures_seen = 8
    preview.end(run, True)
    assert sorted(p.name for p in (run.out / "previews").iterdir()) == ["000000000.png", "000000008.png"]


def test_a_preview_that_cannot_be_written_names_its_file_and_the_run(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    run.out.mkdir()
    (run.out / "previews").write_text("a file")
    with pytest.raises(
        Failure, match=r"previews/000000000\.png: cannot be written \(.+\); make room, then resume .*run$"
    ) as error:
        Preview(run, rows=1, steps=1).end(run, True)
    assert "--" not in str(error.value)


def test_the_best_checkpoint_is_the_one_of_the_lowest_test_loss(
    tiny_tree: dict, picture_folder: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run", "callbacks.best={}")
    add_callbacks(run)
    best = next(c for c in run.callbacks if isinstance(c, Best))
    for run.pictures_seen, value in ((8, 0.5), (16, 0.3), (24, 0.4)):
        best.metrics(run, {"test_loss": value})
        best.metrics(run, {"loss": 0.1})
    assert read_checkpoint(run.out / "checkpoints" / "best")[0]["pictures_seen"] == 16
    run.save()
    again = resume(run.out, make_config, lambda _: run.data, "again", None)
    add_callbacks(again)
    again.pictures_seen = 32
    next(c for c in again.callbacks if isinstance(c, Best)).metrics(again, {"test_loss": 0.35})
    assert read_checkpoint(run.out / "checkpoints" / "best")[0]["pictures_seen"] == 16


def test_tensorboard_gets_every_value(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")
    board = TensorBoard(run)
    for run.pictures_seen, value in ((8, 0.5), (16, 0.25)):
        board.metrics(run, {"loss": value})
    board.end(run, True)
    events = accumulator.EventAccumulator(str(run.out / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(8, 0.5), (16, 0.25)]


def test_training_flops_of_a_known_network(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(tiny_tree, picture_folder, tmp_path / "run")

    class OneConvolution(torch.nn.Module):
        """3 -> 5 channels, 3x3: 3 * 5 * 9 multiply-adds at each of 16x16 places."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    run.ema.network = OneConvolution()
    assert training_flops(run) == 3 * 2 * 3 * 5 * 9 * 16 * 16


def test_callbacks_are_chosen_by_the_config(tiny_tree: dict, picture_folder: Path, tmp_path: Path) -> None:
    run = new_run(
        tiny_tree, picture_folder, tmp_path / "a", "callbacks.tensorboard=null", "callbacks.preview={rows: 1}"
    )
    add_callbacks(run)
    assert [type(c).__name__ for c in run.callbacks] == ["Meter", "PowerEMA", "Validation", "Preview", "Log"]
    assert run.callbacks[3]._rows == 1
    with pytest.raises(BadInput, match=r"no callback 'previews'.*did you mean 'preview'"):
        add_callbacks(new_run(tiny_tree, picture_folder, tmp_path / "b", "callbacks.previews={}"))
