"""Describes a data set before a run: counts, sizes, what is held out or left out, and what the network will see."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cfgdiff.runtime.images import grid

from .data import PictureSet, counted, load_data, reader_of
from .picture_folder import scan

KINDS = {
    "cifar10": "CIFAR-10 in its python layout", "folder": "a folder with one sub-folder of pictures for each class",
    "huggingface": "a data set of Hugging Face", "npz": "an .npz of arrays",
    "webdataset": ".tar shards (WebDataset)",
}  # fmt: skip
COLUMNS, ROWS, SHOWN = 10, 8, 5


def describe(path: Path, image_size: int) -> tuple[PictureSet, str]:
    """The data set, without pictures that cannot be read, and a text about it. Raises `Failure` where it is none."""
    kind = reader_of(path)
    data = load_data(path, image_size, kind, {"skip_broken": True} if kind == "folder" else {})
    c, h, w = data.pictures.shape[1:]
    changed = f": turned as EXIF says, cropped to the middle, resized (train.image_size={h})"
    notes = [*_sizes(path, kind), *data.notes]
    notes += [
        f"the network sees {w}x{h} in {c} channels{changed if kind in ('folder', 'huggingface', 'webdataset') else ''}"
    ]
    notes += ["half of them are mirrored, at random (train.flip)"]
    lines = [f"# {data.name}: {KINDS[kind]}", "", *_counts(data), "", *(f"- {note}" for note in notes)]
    return data, "\n".join(lines)


def _counts(data: PictureSet) -> list[str]:
    """A row a class."""
    train, test = (np.bincount(labels, minlength=len(data.class_names)) for labels in (data.labels, data.test_labels))
    rows = [("class", "to train on", "held out")]
    rows += [(name, f"{a:,}", f"{b:,}") for name, a, b in zip(data.class_names, train, test, strict=True)]
    total = counted(len(data.labels), "picture"), counted(len(data.class_names), "class", "classes")
    held = f"{len(data.test_labels):,} more are held out, the same ones every time" if len(data.test_labels) else ""
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    table = [f"{row[0].ljust(widths[0])}  {row[1].rjust(widths[1])}  {row[2].rjust(widths[2])}" for row in rows]
    held = held or "none is held out (20 are needed): no test loss"
    return [f"{total[0]} in {total[1]} to train on; {held}", "", *table]


def _sizes(path: Path, kind: str) -> Iterable[str]:
    """The sizes and modes of the files of a folder."""
    if kind != "folder":
        return []
    layout = scan(path)

    def head(file: Path) -> tuple[str, str] | None:
        try:
            with Image.open(file) as picture:
                return f"{picture.width}x{picture.height}", picture.mode
        except Exception:  # damaged in one of Pillow's many ways: the notes say so
            return None

    files = [file for file, _ in (*layout.train, *(layout.test or ()))]
    with ThreadPoolExecutor() as pool:
        heads = [size_and_mode for size_and_mode in pool.map(head, files) if size_and_mode]
    return [
        f"{name}: {_most(Counter(v))}" for name, v in zip(("sizes", "modes"), zip(*heads, strict=True), strict=True)
    ]


def _most(counts: "Counter[str]") -> str:
    rest = len(counts) - SHOWN
    shown = ", ".join(f"{name} ({n:,})" for name, n in counts.most_common(SHOWN))
    return shown + (f" and {rest} others" if rest > 0 else "")


def sheet(data: PictureSet) -> np.ndarray:
    """The first training pictures of ten classes as the network sees them, a column a class. (H, W, C) uint8."""
    labels = range(min(COLUMNS, len(data.class_names)))
    columns = [np.flatnonzero(np.asarray(data.labels) == k)[:ROWS] for k in labels]
    rows = max(len(column) for column in columns)
    shown = np.full((rows, len(columns), *data.pictures.shape[1:]), 255, np.uint8)
    for k, column in enumerate(columns):
        shown[: len(column), k] = data.pictures[column]
    return grid(shown.reshape(-1, *data.pictures.shape[1:]).transpose(0, 2, 3, 1), columns=len(columns))
