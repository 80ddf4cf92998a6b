"""Folders of pictures: which files belong to which class, are held out or left out, and what they are decoded to."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.images import cropped

from .cache import cached, content_key
from .data import PictureSet, counted, hold_out, with_test

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TRAIN = ("train", "training")  # names of a split; the first that is there is taken
HELD_OUT = ("test", "testing", "val", "valid", "validation")
DECODING = 2  # counts up where the same file becomes other pixels, so that nothing is taken from an older cache
TRAITS = {  # what a user may not expect of a picture
    "frames": "of several frames: the first is read",
    "alpha": "with an alpha channel: what is transparent becomes white",
    "oblong": "not square: cropped to the middle",
    "small": "smaller than train.image_size: enlarged",
}


@dataclass(frozen=True)
class Layout:
    """The contents of a folder.

    Attributes:
        classes: their names, in the order of their labels.
        train: (file, label) of each picture.
        test: those of a split's held-out part; None where the folder has no split.
        notes: what a user may not expect, a line each.
    """

    classes: list[str]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]] | None
    notes: tuple[str, ...]


def folder(path: Path, image_size: int, *, skip_broken: bool = False) -> PictureSet:
    """One sub-folder for each class, of pictures that Pillow reads; or train/ and test/ with these in each."""
    layout = scan(path)
    pictures = [(file.relative_to(path).as_posix(), k) for file, k in (*layout.train, *(layout.test or ()))]
    settings = (DECODING, image_size, skip_broken, layout.classes, len(layout.train), layout.test is None, pictures)
    key = content_key((path / file for file, _ in pictures), "folder", *settings)
    data = cached(key, lambda: _decode(path, layout, image_size, skip_broken))
    return replace(data, notes=layout.notes + data.notes)


def scan(path: Path) -> Layout:
    """The layout of a folder, by names alone. Raises `Failure` where it is none of classes."""
    if not path.is_dir():
        raise Failure(f"{path}: no such folder; expected one sub-folder of pictures for each class")
    inside = _folders(path)
    split, notes = _split(path, inside)
    root = split[0] if split else path
    classes = {folder.name: k for k, folder in enumerate(_folders(root))}
    train = _pictures(root, classes)
    test = _pictures(split[1], classes) if split and split[1] else None
    if not train:
        expected = f"expected a sub-folder for each class, with {', '.join(sorted(SUFFIXES))} files"
        raise Failure(f"{path}: no pictures found{f' in {root.name}' if split else ''}; {expected}")
    deep = [file for file, k in train if len(file.relative_to(root).parts) > 2]
    if len(classes) == 1 and len(deep) == len(train):
        only = root / min(classes)
        remedy = f"if these are the classes, give {only}"
        raise Failure(f"{path}: '{only.name}' alone is there and holds folders, no pictures; {remedy}")
    if deep:
        notes += (
            f"{counted(len(deep), 'picture')} in folders inside a class folder: taken for that class{_as(path, deep)}",
        )
    read = {file for file, _ in (*train, *(test or ()))}
    searched = [part for part in split if part] if split else [path]
    return Layout(list(classes), train, test, notes + _left_out(path, searched, read))


def _split(path: Path, inside: list[Path]) -> tuple[tuple[Path, Path | None] | None, tuple[str, ...]]:
    """The folders to train on and to hold out (None: a part of the first), and notes; None if they are classes."""
    by_name = {folder.name.lower(): folder for folder in inside}
    train = next((by_name[name] for name in TRAIN if name in by_name), None)
    test = next((by_name[name] for name in HELD_OUT if name in by_name), None)
    others = [folder.name for folder in inside if folder not in (train, test)]
    if train is None:
        if test and not others and _folders(test) and not any(_is_picture(file) for file in test.iterdir()):
            expected = f"expected 'train' beside it, or give {test}"
            raise Failure(f"{path}: holds '{test.name}' alone, with folders in it; {expected}")
        return None, ()
    classes = {folder.name for folder in _folders(train)}
    strange = sorted({folder.name for folder in _folders(test)} - classes) if test else []
    if test and not classes:
        both = f"'{train.name}' and '{test.name}'"
        raise Failure(f"{path}: {both} look like a split, but hold no class folders; rename them if they are classes")
    if test and strange:
        lacking = f"'{strange[0]}', which '{train.name}' lacks"
        raise Failure(f"{path}: '{test.name}' has the class {lacking}; add or remove it")
    if not classes or (others and not test):
        return None, ()  # a class that is called train
    held = f"'{test.name}' held out" if test else "a twentieth of it held out"
    rest = f"; {', '.join(others)} left out" if others else ""
    return (train, test), (f"'{train.name}' is trained on, {held}{rest}",)


def _folders(path: Path) -> list[Path]:
    return sorted(inside for inside in path.iterdir() if inside.is_dir() and not _hidden(inside.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def _pictures(root: Path, classes: dict[str, int]) -> list[tuple[Path, int]]:
    """(file, label) of all pictures in the class folders of `root`, and in folders inside these."""
    return [(file, classes[inside.name]) for inside in _folders(root) for file in _below(inside) if _is_picture(file)]


def _below(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if not any(map(_hidden, file.relative_to(path).parts))]


def _left_out(path: Path, searched: list[Path], read: set[Path]) -> tuple[str, ...]:
    """Notes on the files that are not read."""
    files = [file for part in searched for file in _below(part) if file not in read and file.is_file()]
    beside, strange = [file for file in files if _is_picture(file)], [file for file in files if not _is_picture(file)]
    notes = [f"{counted(len(beside), 'picture')} in no class folder: left out{_as(path, beside)}"] if beside else []
    known = ", ".join(sorted(SUFFIXES))
    notes += (
        [f"{counted(len(strange), 'file')} of other kinds than {known}: left out{_as(path, strange)}"]
        if strange
        else []
    )
    return tuple(notes)


def _as(path: Path, files: list[Path]) -> str:
    return f", for example {files[0].relative_to(path).as_posix()}"


def _decode(path: Path, layout: Layout, image_size: int, skip_broken: bool) -> PictureSet:
    from tqdm import tqdm

    files = [*layout.train, *(layout.test or ())]
    with ThreadPoolExecutor() as pool:
        reading = pool.map(lambda entry: _read(entry[0], image_size), files)
        decoded = list(tqdm(reading, total=len(files), desc="decoding", unit="pictures", leave=False, disable=None))
    broken = [reason for reason, _ in decoded if isinstance(reason, str)]
    named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
    if broken and not skip_broken:
        remedy = "replace or remove what is broken, or leave it out with `skip_broken`"
        raise Failure(f"{path}: cannot read {named}; {remedy}")
    notes = [f"{counted(len(broken), 'picture')} that cannot be read, left out: {named}"] if broken else []
    notes += _traits(path, [(file, traits) for (file, _), (_, traits) in zip(files, decoded, strict=True)])
    n = len(layout.train)
    train, test = _arrays(layout.train, decoded[:n], image_size), _arrays(files[n:], decoded[n:], image_size)
    if empty := [name for k, name in enumerate(layout.classes) if k not in train[1]]:
        raise Failure(f"{path}: no readable pictures in class folder '{empty[0]}'; fill or remove it")
    if all((part[:, 0] == part[:, c]).all() for part in (train[0], test[0]) for c in (1, 2)):
        notes.append("all pictures are gray; the model has three channels all the same")
    name = path.resolve().name
    if layout.test is None:
        return replace(hold_out(name, layout.classes, *train), notes=tuple(notes))
    return replace(with_test(name, layout.classes, *train, *test), notes=tuple(notes))


def _read(file: Path, size: int) -> tuple[np.ndarray | str, set[str]]:
    """A picture (3, size, size) uint8, or why it cannot be read; and which of `TRAITS` it has."""
    try:
        with Image.open(file) as picture:
            traits = {
                "frames": getattr(picture, "n_frames", 1) > 1,
                "alpha": picture.mode.lower().endswith("a") or "transparency" in picture.info,
                "oblong": picture.width != picture.height,
                "small": min(picture.size) < size,
            }
            return square(picture, size, str(file)), {trait for trait, has in traits.items() if has}
    except Failure as error:
        return str(error), set()
    except Exception as error:  # Pillow's readers of damaged files raise a dozen kinds
        return f"{file} ({str(error).splitlines()[0] if str(error) else type(error).__name__})", set()


def square(picture: Image.Image, size: int, where: str = "picture") -> np.ndarray:
    """(3, size, size) uint8: centre crop, then antialiased resize. Raises `Failure` for pixels of unknown range."""
    return cropped(picture, size, size, where=where).transpose(2, 0, 1)


def _traits(path: Path, read: Iterable[tuple[Path, set[str]]]) -> list[str]:
    by_trait = {trait: [file for file, traits in read if trait in traits] for trait in TRAITS}
    shown = [(trait, files) for trait, files in by_trait.items() if files]
    return [f"{counted(len(files), 'picture')} {TRAITS[trait]}{_as(path, files)}" for trait, files in shown]


def _arrays(
    files: list[tuple[Path, int]], decoded: list[tuple[np.ndarray | str, set[str]]], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, size, size) uint8 and (N,) int64 of those that were read."""
    both = [(picture, label) for (_, label), (picture, _) in zip(files, decoded, strict=True)]
    pairs = [(picture, label) for picture, label in both if not isinstance(picture, str)]
    pictures = np.stack([picture for picture, _ in pairs]) if pairs else np.zeros((0, 3, size, size), np.uint8)
    return pictures, np.array([label for _, label in pairs], np.int64)
