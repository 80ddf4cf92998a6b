"""Makes the shards of a set on a Ray cluster: a dataset of their numbers, mapped by actors with an engine each.

What a lost machine was making is made again elsewhere. The manifests are the checkpoint, so a second call makes the
rest. It knows no flags.
"""

import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .bundle import Bundle
from .engine import Engine
from .errors import Failure
from .places import is_url
from .plan import Plan
from .shard_set import Recipe, ShardSet

LOCAL = "local"
MOST_BLOCKS = 10_000  # of the dataset: with more shards, an actor takes several at a time
WAIT = 10.0  # seconds for the cluster to answer
OBJECTS = 80_000_000  # bytes of Ray's object store on this machine, about the least: only numbers go through it


@dataclass(frozen=True)
class Cluster:
    """Where to draw.

    Attributes:
        address: of a Ray cluster, as in `ray.init`; or "local", which starts one on this machine.
        actors: that draw at the same time; None: as many as there is room for.
        threads: of each on a CPU.
    """

    address: str = LOCAL
    actors: int | None = None
    threads: int = 1


class Maker:
    """The actor: opens the set and an engine once, and makes one shard after another."""

    def __init__(self, recipe: Recipe, opened: Callable[[Bundle, Plan], Engine], damaged: Collection[int]) -> None:
        self._recipe, self._opened, self._damaged = recipe, opened, damaged

    @cached_property
    def _tools(self) -> tuple[ShardSet, Engine]:  # not in the constructor: Ray does not hand on what that raises
        shards = ShardSet(self._recipe)
        return shards, self._opened(shards.bundle, shards.plan_of(0, shards.first(1)))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Make a shard, unless a call that was lost, or another process, has made it."""
        (shard,), (shards, engine) = batch["shard"].tolist(), self._tools
        if shard in self._damaged or not shards.is_finished(shard):
            shards.make(shard, engine)
        return {"shard": [shard], "engine": [engine.name], "precision": [engine.precision]}


def make_on_ray(recipe: Recipe, shards: Sequence[int], damaged: Collection[int], cluster: Cluster,
                opened: Callable[[Bundle, Plan], Engine]) -> Iterator[tuple[int, str, str]]:  # fmt: skip
    """Make shards on a cluster.

    Args:
        recipe: whose folder, if it is no URL, and whose model every machine of the cluster has under the same name.
        damaged: those of the shards that have a manifest, and are made all the same.
        opened: opens the engine of an actor for a bundle and pictures to draw; it is sent there.

    Yields:
        Of each shard, as they are finished: its number, the engine's name and its precision.

    Raises:
        Failure: Ray is not installed, there is no such cluster, or an actor fails.
    """
    if not is_url(recipe.dest):
        recipe = replace(recipe, dest=os.path.abspath(recipe.dest))
    with _connected(cluster.address) as ray:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        context = DataContext.get_current()
        context.enable_progress_bars, context.print_on_execution_start = False, False
        context.raise_original_map_exception = True
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        room = gpus or cpus // cluster.threads
        if not room:
            raise Failure(f"ray: expected {cluster.threads} free CPUs or a GPU on {cluster.address}, found {cpus} CPUs")
        actors = min(cluster.actors or room, len(shards))
        numbers = from_items([{"shard": k} for k in shards], override_num_blocks=min(len(shards), MOST_BLOCKS))
        made = numbers.map_batches(
            Maker, fn_constructor_args=(recipe, opened, frozenset(damaged)), batch_size=1,
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_gpus=1 if gpus else None, num_cpus=None if gpus else cluster.threads,
        )  # fmt: skip
        with closing(iter(made.iter_rows())) as rows:  # type: ignore[type-var]  # before the cluster is left
            for row in rows:  # Ray Data restarts actors, and repeats calls, that are lost with their machine
                yield row["shard"], row["engine"], row["precision"]


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray's module, connected to a cluster; its errors as `Failure`."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Failure(f"ray: is not installed ({error}); pip install 'cfgdiff[ray]'") from None
    _check_port(address)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == LOCAL else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **here)
    except Exception as error:  # ConnectionError, and what each protocol of an address has
        raise Failure(f"ray: cannot connect to {address} ({_line(error)}); is the cluster running?") from None
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise _failure(error) from None
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raises `Failure` where nobody answers at host:port: Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT).close()
        except (OSError, OverflowError) as error:
            raise Failure(f"ray: nobody answers at {address} ({error}); is the cluster running?") from None


def _failure(error: BaseException | None) -> Failure:
    """The `Failure` of an actor that Ray's error is of, or one that quotes Ray's."""
    chain = error
    while chain is not None:
        if isinstance(chain, Failure):
            return Failure(str(chain))
        chain = getattr(chain, "cause", None) or chain.__cause__
    return Failure(f"ray: the cluster failed ({_line(error)}); the same call continues")


def _line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
