"""Sets in shards: the very pictures of one run, what is finished, what is damaged, and what is refused."""

import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Formula

from cfgdiff.runtime import Request, sample
from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.notes import model_note, note_of
from cfgdiff.runtime.places import sha256_of
from cfgdiff.runtime.plan import resolve
from cfgdiff.runtime.shard_formats import FORMATS
from cfgdiff.runtime.shard_set import Recipe, ShardSet
from cfgdiff.runtime.shards import manifest_name, read_manifests, read_shard

REQUEST = Request(["cat", "ship", "frog"], steps=2, sampler="ddim", guidance=[1.0, 2.0], seed=5, batch=4)
N, SIZE = 23, 10


def a_set(path: Path, packaged: Any, **changed: Any) -> ShardSet:
    """Of 23 pictures in shards of 10; `changed` are fields of the recipe, or of its request."""
    request = replace(REQUEST, **{k: v for k, v in changed.items() if hasattr(REQUEST, k)})
    recipe = {k: v for k, v in changed.items() if not hasattr(REQUEST, k)}
    return ShardSet(
        Recipe(**{"dest": str(path), "model": "cifar10-small", "request": request, "n": N, "size": SIZE} | recipe),
        packaged,
    )


def made(shards: ShardSet, *numbers: int) -> ShardSet:
    for shard in numbers or range(shards.count):
        shards.make(shard, Formula())
    return shards


@pytest.mark.parametrize("form", FORMATS)
def test_shards_hold_the_pictures_of_one_run(form: str, packaged: Any, tmp_path: Path) -> None:
    classes, weights = [REQUEST.classes[i % 3] for i in range(N)], [REQUEST.guidance[i % 2] for i in range(N)]  # type: ignore[index]
    plan = resolve(packaged, replace(REQUEST, classes=classes, guidance=weights))
    expected = np.concatenate([pictures for _, pictures in sample(Formula(), plan)])
    shards = made(a_set(tmp_path, packaged, format=form))
    manifests = read_manifests(shards.place)
    assert [(m.first, m.count) for m in manifests] == [(0, 10), (10, 10), (20, 3)] and shards.count == 3
    pictures, labels = zip(*(read_shard(shards.place, manifest) for manifest in manifests), strict=True)
    assert np.array_equal(np.concatenate(pictures), expected)
    noted = np.concatenate([manifest.labels for manifest in manifests])
    assert np.concatenate(labels).tolist() == plan.labels.tolist() == noted.tolist()
    with shards.place.local(manifests[1].file) as path:
        notes = [item.note for item in FORMATS[form].read(path)]
    model = model_note(packaged, Formula())
    assert notes == [json.loads(json.dumps(note_of(plan, i) | model)) for i in range(10, 20)]
    assert manifests[0].settings == {"steps": 2, "sampler": "ddim", "interval": [0.1, 3.0]}
    assert manifests[0].guidance == (1.0, 2.0)


def test_bytes_do_not_depend_on_who_makes_a_shard_and_when(packaged: Any, tmp_path: Path) -> None:
    made(a_set(tmp_path / "a", packaged))
    made(a_set(tmp_path / "b", packaged, n=25), 2)
    made(a_set(tmp_path / "b", packaged), 2, 1, 0)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 6


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_damaged_is_named_and_made_anew(form: str, packaged: Any, tmp_path: Path) -> None:
    shards = made(a_set(tmp_path, packaged, format=form))
    before = {p.name: sha256_of(p) for p in tmp_path.iterdir()}
    assert shards.survey(range(3)).finished == [0, 1, 2]
    first, second = (tmp_path / shards.file(k) for k in (0, 1))
    victim = sorted(first.iterdir())[2] if form == "folder" else first
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    lost = sorted(second.iterdir())[0] if form == "folder" else second
    second_size = shards.place.size(second.name) - lost.stat().st_size  # type: ignore[operator]
    lost.unlink()
    (tmp_path / manifest_name(2)).write_bytes(b'{"version": 1')
    found = shards.survey(range(3))
    gone = f"has {second_size} bytes, and" if form == "folder" else "is missing"
    assert found.missing == [0, 1, 2] and not found.finished
    assert found.damaged[0] == "has another sha256 than in its manifest" and found.damaged[2] == "is damaged"
    assert found.damaged[1].startswith(gone)
    assert shards.survey([0], read=False).finished == [0], "its size is right"
    made(shards, *found.missing)
    assert {p.name: sha256_of(p) for p in tmp_path.iterdir()} == before
    (tmp_path / manifest_name(1)).unlink()
    assert shards.survey([0, 1]).missing == [1] and not shards.survey([1]).damaged
    assert (shards.is_finished(0), shards.is_finished(1)) == (True, False)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seed": 6}, "seed 5 (now 6)"),
        ({"steps": 3}, "steps 2 (now 3)"),
        ({"sampler": "dpmpp-2m"}, "sampler ddim (now dpmpp-2m)"),
        ({"classes": ["cat", "frog"]}, "classes cat,ship,frog (now cat,frog)"),
        ({"guidance": 2.0}, "guidance 1.0,2.0 (now 2.0)"),
        ({"size": 5}, "shard_size 10 (now 5)"),
        ({"format": "parquet"}, "format tar (now parquet)"),
        ({"kind": "webp"}, "kind png (now webp)"),
    ],
)
def test_another_set_is_refused_and_what_differs_is_named(
    changed: dict, expected: str, packaged: Any, tmp_path: Path
) -> None:
    made(a_set(tmp_path, packaged), 1)
    with pytest.raises(BadInput) as error:
        a_set(tmp_path, packaged, **changed).survey([0])
    assert (
        str(error.value)
        == f"out: {tmp_path} holds pictures made with {expected}; ask for the same, or for another place"
    )


def test_another_model_or_precision_is_refused(packaged: Any, tmp_path: Path) -> None:
    shards = made(a_set(tmp_path, packaged), 1)
    with pytest.raises(BadInput, match=r"model_sha256 .*precision float32 \(now int8\)"):
        shards.survey([0], precision="int8")
    other = replace(packaged, name="mine", class_names=[*packaged.class_names[:9], "lorry"])
    with pytest.raises(BadInput, match=r"class_names .*truck \(now .*lorry\), model cifar10-small \(now mine\)"):
        a_set(tmp_path, other).survey([0])
    assert shards.survey([1], precision="float32").finished == [1]
    assert a_set(tmp_path, packaged, batch=7).survey([1]).finished == [1], "a batch does not make another picture"


def test_a_set_grows_and_does_not_shrink(packaged: Any, tmp_path: Path) -> None:
    made(a_set(tmp_path, packaged))
    found = a_set(tmp_path, packaged, n=41).survey(range(5))
    assert (found.finished, found.missing, found.damaged) == ([0, 1], [2, 3, 4], {2: "holds 3 of 10 pictures"})
    with pytest.raises(BadInput, match=f"^n: {tmp_path} holds 23 pictures or more, found 22; ask for as many"):
        a_set(tmp_path, packaged, n=22).survey([0])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"n": 0}, "n: expected 1 or more"),
        ({"size": 0}, "shard_size: expected 1 or more"),
        ({"n": 10**12, "size": 10}, "shard_size: expected 1000000 or more, for at most 1000000 shards, found 10"),
        ({"format": "zip"}, "shard_format: no format 'zip'; choose from tar, parquet, folder"),
        ({"guidance": [1.0] * 30 + [float("nan")]}, "guidance: expected finite numbers, found 1.0, nan"),
        ({"classes": ["cat", "dgo"]}, "classes: no class 'dgo'"),
    ],
)
def test_mistakes_are_a_line(changed: dict, expected: str, packaged: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        a_set(tmp_path, packaged, **changed)
    assert str(error.value).startswith(expected)


def test_an_engine_that_fails_leaves_nothing(packaged: Any, tmp_path: Path) -> None:
    class Failing(Formula):
        def predict(self, *inputs: np.ndarray) -> np.ndarray:  # type: ignore[override]
            if len(self.calls) == 3:
                raise Failure("formula: broke")
            return super().predict(*inputs)

    with pytest.raises(Failure, match=r"^formula: broke$"):
        a_set(tmp_path, packaged).make(0, Failing())
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_a_million_million_pictures_needs_no_memory(packaged: Any, tmp_path: Path) -> None:
    tracemalloc.start()
    shards = a_set(tmp_path, packaged, n=10**12, size=10**6)
    plan = shards.plan_of(shards.first(999_999) + 10**6 - 3, shards.first(10**6))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.indices.tolist() == [10**12 - 3, 10**12 - 2, 10**12 - 1] and peak < 2**20
    assert plan.labels.tolist() == [(3, 8, 6)[i % 3] for i in range(10**12 - 3, 10**12)]


def test_manifests_are_json_with_an_entry_a_line(packaged: Any, tmp_path: Path) -> None:
    made(a_set(tmp_path, packaged), 2)
    text = (tmp_path / "shard-000002.json").read_text()
    tree = json.loads(text)
    data = (tmp_path / "shard-000002.tar").read_bytes()
    assert (tree["sha256"], tree["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert text.count("\n") > 20 and tree["engine"] == "formula" and tree["shape"] == [32, 32, 3]
