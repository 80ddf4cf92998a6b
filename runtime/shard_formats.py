"""How the pictures of a shard are stored in a file or folder: one entry of `FORMATS` for each way.

The same items give the same bytes: no times, no owners, nothing of the machine.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .archives import add_picture
from .errors import Failure

ROW_GROUP = 100  # pictures; as Hugging Face advises, so that a viewer reads few of them
METADATA = "metadata.jsonl"  # with its `file_name`, `datasets` reads the folder as an imagefolder


@dataclass(frozen=True)
class Item:
    """A picture as stored: its index in the set, its label, its note, and its file's bytes."""

    index: int
    label: int
    note: dict[str, Any]
    data: bytes


def decoded(data: bytes, where: str) -> np.ndarray:
    """(H, W, C) uint8 of a picture's bytes. Raises `Failure`, naming `where`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.atleast_3d(np.asarray(image))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise Failure(f"{where}: cannot be read ({error or type(error).__name__}); make its shard anew") from None


def stem(index: int) -> str:
    """What the files of a picture are called. It does not depend on how many pictures there are."""
    return f"{index:09d}"


@dataclass(frozen=True)
class Header:
    """What a shard says of all its pictures: the classes by label, the pictures' kind (png, webp) and the seed."""

    class_names: Sequence[str]
    kind: str
    seed: int


@dataclass(frozen=True)
class Format:
    """One way to store a shard.

    Attributes:
        suffix: of its name; a folder has none.
        write: the items, in order, into a new file or folder.
        read: the items of a file or folder, in order.
    """

    suffix: str
    write: Callable[[Path, Header, Iterator[Item]], None]
    read: Callable[[Path], Iterator[Item]]


def _write_tar(path: Path, header: Header, items: Iterator[Item]) -> None:
    with path.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for item in items:
            add_picture(archive, stem(item.index), header.kind, item.data, item.label, item.note)


def _read_tar(path: Path) -> Iterator[Item]:
    with tarfile.open(path, "r:") as archive:
        contents = dict[str, bytes]()
        while (member := archive.next()) is not None:
            name, _, suffix = member.name.partition(".")
            file = archive.extractfile(member)
            contents[suffix] = b"" if file is None else file.read()
            archive.members.clear()  # type: ignore[attr-defined]  # else they are all kept in memory
            if suffix == "json":
                note, label = json.loads(contents.pop("json")), int(contents.pop("cls"))
                ((_, data),) = contents.items()
                contents.clear()
                yield Item(int(name), label, note, data)


def _write_folder(path: Path, header: Header, items: Iterator[Item]) -> None:
    path.mkdir()
    with (path / METADATA).open("x", encoding="utf-8", newline="\n") as lines:
        for item in items:
            name = f"{stem(item.index)}.{header.kind}"
            (path / name).write_bytes(item.data)
            lines.write(json.dumps({"file_name": name, "label": item.label, "note": json.dumps(item.note)}) + "\n")


def _read_folder(path: Path) -> Iterator[Item]:
    with (path / METADATA).open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            data = (path / entry["file_name"]).read_bytes()
            yield Item(int(entry["file_name"].partition(".")[0]), entry["label"], json.loads(entry["note"]), data)


def _write_parquet(path: Path, header: Header, items: Iterator[Item]) -> None:
    import pyarrow as pa

    parquet, schema = _parquet(), _schema(header)
    with parquet.ParquetWriter(path, schema, compression="none") as writer:
        while group := list(itertools.islice(items, ROW_GROUP)):
            rows = [
                {"image": {"bytes": item.data, "path": f"{stem(item.index)}.{header.kind}"}, "label": item.label,
                 "index": item.index, "seed": header.seed, "note": json.dumps(item.note)} for item in group
            ]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _read_parquet(path: Path) -> Iterator[Item]:
    with _parquet().ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["image", "label", "index", "note"]):
            for row in batch.to_pylist():
                yield Item(row["index"], row["label"], json.loads(row["note"]), row["image"]["bytes"])


def _parquet() -> Any:
    """pyarrow.parquet. Raises `Failure` where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise Failure(f"parquet: needs pyarrow ({error}); pip install 'cfgdiff[parquet]'") from None
    return pyarrow.parquet


def _schema(header: Header) -> Any:
    """Arrow's types of the columns, and, as metadata, the features that Hugging Face's `datasets` reads them as."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": image, "label": pa.int64(), "index": pa.int64(), "seed": pa.uint64(), "note": pa.string()}
    values = {"index": "int64", "seed": "uint64", "note": "string"}
    features: dict[str, Any] = {
        "image": {"_type": "Image"}, "label": {"names": list(header.class_names), "_type": "ClassLabel"},
    }  # fmt: skip
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in values.items()}
    return pa.schema(list(types.items()), {"huggingface": json.dumps({"info": {"features": features}})})


FORMATS = {
    "tar": Format(".tar", _write_tar, _read_tar),
    "parquet": Format(".parquet", _write_parquet, _read_parquet),
    "folder": Format("", _write_folder, _read_folder),
}
