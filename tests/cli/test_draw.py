"""Jobs on an engine that is fast: what is written, gone on with, and made again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cfgdiff.cli import draw as module
from cfgdiff.cli.draw import Drawing, Target, draw, redraw
from cfgdiff.runtime import Bundle, Request, resolve
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.images import encoded, read_note


class Fast:
    """Predicts by a formula; the last bits depend on the batch size, as those of real engines do."""

    name, precision, max_batch = "fast", "float32", 64

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(
        self, sample: np.ndarray, timestep: np.ndarray, class_label: np.ndarray, guidance: np.ndarray
    ) -> np.ndarray:
        self.batches.append(len(sample))
        return np.tanh(sample[..., ::-1, :]) * np.float32(1 + len(sample) / 50)

    def close(self) -> None:
        pass


def drawing(bundle: Bundle, n: int, batch: int = 8, engine: Any = None, **settings: Any) -> Drawing:
    request = Request(["cat", "dog"] * (n // 2), **{"steps": 2, "seed": 1, "sampler": "ddim"} | settings, batch=batch)
    return Drawing(bundle, resolve(bundle, request), engine or Fast())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, kind: Any, after: int) -> Iterator[None]:
    """Ctrl-C when `after` pictures are in the output, which is of this kind."""
    write, written = kind.add, []

    def killed(self: Any, indices: np.ndarray, pictures: np.ndarray) -> None:
        for i in range(len(indices)):
            if len(written) == after:
                raise KeyboardInterrupt
            write(self, indices[i : i + 1], pictures[i : i + 1])
            written.append(i)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "add", killed)
        yield


@pytest.mark.parametrize("after", [1, 11, 19])
def test_an_interrupted_job_that_is_resumed_ends_with_the_files_of_an_undisturbed_one(
    packaged: Bundle, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(drawing(packaged, 20), Target(tmp_path / "whole"))
    with interrupted(monkeypatch, module.Folder, after):
        draw(drawing(packaged, 20), Target(tmp_path / "part"))
    assert len(files(tmp_path / "part")) == after
    engine = Fast()
    drawn = draw(drawing(packaged, 20, engine=engine), Target(tmp_path / "part", resume=True))
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    assert drawn.n == 20 - after // 8 * 8 == sum(engine.batches) // 2
    assert draw(drawing(packaged, 20), Target(tmp_path / "part", resume=True)).n == 0


def test_rescaling_halves_the_batches_of_a_resumed_job_too(
    packaged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rescaling passes an engine two rows a picture: of 64 rows at most, 32 pictures."""
    settings: dict[str, Any] = {"batch": 64, "guidance": 3.0, "rescale": 0.5, "interval": (0, np.inf)}
    engine = Fast()
    draw(drawing(packaged, 80, engine=engine, **settings), Target(tmp_path / "whole"))
    assert engine.batches == [64, 64, 64, 64, 32, 32]  # two evaluations each of 32, 32 and 16 pictures
    with interrupted(monkeypatch, module.Folder, 40):
        draw(drawing(packaged, 80, **settings), Target(tmp_path / "part"))
    engine = Fast()
    drawn = draw(drawing(packaged, 80, engine=engine, **settings), Target(tmp_path / "part", resume=True))
    assert (drawn.n, engine.batches) == (48, [64, 64, 32, 32]) and files(tmp_path / "part") == files(tmp_path / "whole")


@pytest.mark.parametrize("after", [0, 1, 11, 19])
def test_an_interrupted_tar_that_is_resumed_ends_with_the_bytes_of_an_undisturbed_one(
    packaged: Bundle, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(drawing(packaged, 20), Target(tmp_path / "whole.tar"))
    with interrupted(monkeypatch, module.Tar, after):
        draw(drawing(packaged, 20), Target(tmp_path / "part.tar", resume=True))
    assert not (tmp_path / "part.tar").exists()
    engine = Fast()
    drawn = draw(drawing(packaged, 20, engine=engine), Target(tmp_path / "part.tar", resume=True))
    assert files(tmp_path).keys() == {"whole.tar", "part.tar"}
    assert files(tmp_path)["part.tar"] == files(tmp_path)["whole.tar"]
    assert drawn.n == 20 - after // 8 * 8 == sum(engine.batches) // 2
    assert draw(drawing(packaged, 20), Target(tmp_path / "part.tar", resume=True)).n == 0
    assert files(tmp_path)["part.tar"] == files(tmp_path)["whole.tar"]


def test_resuming_needs_a_folder_of_the_same_run(packaged: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^resume: only a folder or \.tar can be resumed"):
        draw(drawing(packaged, 2), Target(tmp_path / "a.npz", resume=True))
    draw(drawing(packaged, 4), Target(tmp_path / "a"))
    other = drawing(packaged, 6, 4, seed=2)
    with pytest.raises(BadInput, match=r"^resume: .* was made with seed 1 \(now 2\)"):
        draw(other, Target(tmp_path / "a", resume=True))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_is_made_again(packaged: Bundle, tmp_path: Path, kind: str) -> None:
    draw(drawing(packaged, 4, batch=1), Target(tmp_path / "a", kind))
    said = redraw(
        tmp_path / "a" / f"0003.{kind}", packaged, tmp_path / f"b.{kind}", None, lambda engine, precision: (Fast(), "")
    )
    assert "the same pixels (fast, float32" in said
    assert (tmp_path / f"b.{kind}").read_bytes() == (tmp_path / "a" / f"0003.{kind}").read_bytes()


@pytest.mark.parametrize(
    ("name", "said"), [("one.png", "same pixels"), ("one.webp", "same pixels"), ("one.jpg", "differs by up to")]
)
def test_a_single_picture_is_itself_and_made_again(packaged: Bundle, tmp_path: Path, name: str, said: str) -> None:
    one = Request(["cat"], 2, seed=2**64 - 1, sampler="ddim", indices=[5])
    draw(Drawing(packaged, resolve(packaged, one), Fast()), Target(tmp_path / name))
    with Image.open(tmp_path / name) as image:
        assert image.size == (32, 32)
    assert read_note(tmp_path / name)["seed"] == 2**64 - 1
    again = tmp_path / f"again{Path(name).suffix}"
    assert said in redraw(tmp_path / name, packaged, again, None, lambda engine, precision: (Fast(), ""))
    assert again.read_bytes() == (tmp_path / name).read_bytes()


def test_a_folder_with_a_dot_in_its_name_takes_a_picture_that_is_made_again(packaged: Bundle, tmp_path: Path) -> None:
    draw(drawing(packaged, 2, batch=1), Target(tmp_path / "a"))
    redraw(tmp_path / "a" / "0001.png", packaged, tmp_path / "run.v2", None, lambda engine, precision: (Fast(), ""))
    assert files(tmp_path / "run.v2") == {"0001.png": files(tmp_path / "a")["0001.png"]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sampler": "nope"}, "its note cannot be drawn .*no sampler 'nope'"),
        ({"class": "nope"}, "its note cannot be drawn .*no class 'nope'"),
        ({"guidance": 1e39}, "another 'guidance' in the note, found 1e"),
        ({"model_sha256": 5}, "its note lacks the model"),
        ({"precision": ["float32"]}, "its note lacks the model"),
    ],
)
def test_a_note_that_cannot_be_drawn_is_one_line(
    packaged: Bundle, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    task = drawing(packaged, 2)
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((32, 32, 3), np.uint8), "png", task.note(0) | change))
    with pytest.raises(Failure, match=expected):
        redraw(tmp_path / "a.png", packaged, tmp_path / "b.png", None, lambda engine, precision: (Fast(), ""))
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8), "png", task.note(0)))
    with pytest.raises(
        Failure, match=r"a\.png: expected a picture of \(32, 32, 3\), as its note says, found \(8, 8, 3\)"
    ):
        redraw(tmp_path / "a.png", packaged, tmp_path / "b.png", None, lambda engine, precision: (Fast(), ""))


def test_a_picture_that_comes_out_otherwise_is_said_to(packaged: Bundle, tmp_path: Path) -> None:
    draw(drawing(packaged, 4, batch=4), Target(tmp_path / "a"))
    said = redraw(tmp_path / "a" / "0003.png", packaged, tmp_path, None, lambda engine, precision: (Fast(), ""))
    assert "differs by up to" in said  # in a batch of 4, this engine answers otherwise than alone


def test_the_original_is_kept_and_only_pictures_are_written(packaged: Bundle, tmp_path: Path) -> None:
    draw(drawing(packaged, 2), Target(tmp_path / "a"))
    before = files(tmp_path / "a")
    for out, expected in (
        (tmp_path / "a", "which is kept"),
        (tmp_path / "a" / "0001.png", "which is kept"),
        (tmp_path / "b.npz", r"\.webp"),
    ):
        with pytest.raises(BadInput, match=f"--out: expected .*{expected}"):
            redraw(tmp_path / "a" / "0001.png", packaged, out, None, lambda engine, precision: (Fast(), ""))
    assert files(tmp_path / "a") == before and not (tmp_path / "b.npz").exists()


def test_a_picture_of_another_model_is_refused(packaged: Bundle, small_bundle: Bundle, tmp_path: Path) -> None:
    draw(drawing(packaged, 2), Target(tmp_path / "a"))
    with pytest.raises(Failure, match=r"was made with model .* found small .*; give --model"):
        redraw(
            tmp_path / "a" / "0001.png", small_bundle, tmp_path / "b.png", None, lambda engine, precision: (Fast(), "")
        )
    assert not (tmp_path / "b.png").exists()


def test_a_gif_shows_the_pictures_coming_out_of_the_noise(packaged: Bundle, tmp_path: Path) -> None:
    draw(drawing(packaged, 4), Target(tmp_path / "a.gif"))
    with Image.open(tmp_path / "a.gif") as found:
        assert getattr(found, "n_frames", 0) == 2 and found.size == (2 * 34 + 2, 2 * 34 + 2)


def test_without_a_terminal_a_stream_says_where_it_can_be_seen(
    packaged: Bundle, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draw(drawing(packaged, 2), Target(tmp_path / "a.png", stream=True))
    assert "--stream: standard error is no terminal; take --out NAME.gif" in capfd.readouterr().err
    assert (tmp_path / "a.png").is_file()
