"""A Ray cluster of two machines, one of which is killed midway: all shards are there, with the bytes of one process.

It runs in a process of its own, which Ray may warn as it likes.
"""

import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Formula

from cfgdiff.runtime import Bundle, Engine, Plan, Request, Stage, open_engine, resolve
from cfgdiff.runtime.errors import Failure
from cfgdiff.runtime.places import sha256_of
from cfgdiff.runtime.ray_shards import Cluster, Maker, _failure, make_on_ray
from cfgdiff.runtime.shard_set import Recipe, ShardSet

RECIPE = {"model": "cifar10-small", "n": 47, "size": 6}
REQUEST = {"classes": ["cat", "ship"], "steps": 1, "sampler": "ddim", "guidance": 1.0, "batch": 4}
CODE = """
import json, sys, time
from ray.cluster_utils import Cluster as Machines
from fakes import Formula
from cfgdiff.runtime import Request
from cfgdiff.runtime.ray_shards import Cluster, _failure, make_on_ray
from cfgdiff.runtime.shard_set import Recipe, ShardSet

def slow(bundle, plan):
    class Slow(Formula):
        def predict(self, *inputs):
            time.sleep(0.1)
            return super().predict(*inputs)
    return Slow()

out, recipe, request = sys.argv[1], *map(json.loads, sys.argv[2:])
recipe = Recipe(dest=out, request=Request(**request), **recipe)
small = {"object_store_memory": 80_000_000, "include_dashboard": False}
health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": health, **small})
nodes = [machines.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
machines.wait_for_nodes()
made = []
for shard, engine, precision in make_on_ray(recipe, range(8), (), Cluster(machines.address), slow):
    if not made:
        machines.remove_node(nodes[1], allow_graceful=False)
    made.append((shard, engine, precision))
machines.shutdown()
with open(out + ".json", "w") as file:
    json.dump(made, file)
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the ray extra: pip install 'cfgdiff[ray]'")
def test_a_killed_machine_loses_nothing(packaged: Any, tmp_path: Path) -> None:
    one = ShardSet(Recipe(str(tmp_path / "one"), request=Request(**REQUEST), **RECIPE), packaged)  # type: ignore[arg-type]
    for shard in range(one.count):
        one.make(shard, Formula())
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    arguments = [str(tmp_path / "many"), json.dumps(RECIPE), json.dumps(REQUEST)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    made = json.loads((tmp_path / "many.json").read_text())
    assert sorted(made) == [[shard, "formula", "float32"] for shard in range(8)]
    files = {name: {p.name: sha256_of(p) for p in (tmp_path / name).glob("[!.]*")} for name in ("one", "many")}
    assert files["many"] == files["one"] and len(files["one"]) == 16


def test_an_actor_makes_shards_of_a_cascade(cascade: Bundle, tmp_path: Path) -> None:
    """What is sent to it as bytes opens the part of the bundle that is asked for."""
    request = Request(["a", "c"], batch=2, stages=(Stage(steps=1, noise=50.0),))
    recipes = [Recipe(str(tmp_path / name), str(cascade.path), request, 5, 3, height=16) for name in ("one", "two")]
    asked = list[tuple[int, ...]]()

    def opened(bundle: Bundle, plan: Plan) -> Engine:
        asked.append((len(plan), len(plan.stages[0]), *bundle.picture_shape))
        return open_engine(bundle, "cpu", "float32", threads=1)

    maker = Maker(pickle.loads(pickle.dumps(recipes[0])), opened, ())
    assert maker({"shard": np.array([1])}) == {"shard": [1], "engine": ["cpu"], "precision": ["float32"]}
    with opened(cascade.up_to(16), resolve(cascade.up_to(16), request)) as engine:
        manifest = ShardSet(recipes[1], cascade).make(1, engine)
    assert sha256_of(tmp_path / "one" / manifest.file) == manifest.sha256
    assert asked == [(3, 3, 3, 16, 16), (2, 2, 3, 16, 16)]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the ray extra: pip install 'cfgdiff[ray]'")
def test_what_an_actor_raises_is_the_error_of_the_call() -> None:
    from ray.exceptions import NodeDiedError, RayTaskError

    raised = RayTaskError("submit", "Traceback\n...", Failure("cpu: is not here; pip install it"))
    assert str(_failure(raised)) == "cpu: is not here; pip install it"
    text = str(_failure(NodeDiedError("gone\nlong ago")))
    assert (
        text.startswith("ray: the cluster failed (") and "\n" not in text and text.endswith("the same call continues")
    )


def test_an_address_where_nobody_answers_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("memory://set", "cifar10-small", Request(["cat"]), 1, 1)

    def call(address: str) -> None:
        next(make_on_ray(recipe, [0], (), Cluster(address), lambda bundle, plan: Formula()))

    if find_spec("ray") is not None:
        for address in ("127.0.0.1:1", "ray://[::1]:1"):
            with pytest.raises(Failure, match=r"^ray: nobody answers at .*:1 \(.*\); is the cluster running\?$"):
                call(address)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Failure, match=r"^ray: is not installed .*; pip install 'cfgdiff\[ray\]'$"):
        call("local")
