"""The engines of a cascade: one for its base and one for each super-resolution stage, behind the base's interface."""

from collections.abc import Sequence
from typing import Any

from .engine import Engine, WrappedEngine
from .errors import BadInput


class Cascade(WrappedEngine):
    """Calls are answered by the base; `stages` are the engines of the stages, which `sample` calls."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        super().__init__(engines[0])
        self.stages = tuple(engines[1:])
        self.max_batch = min(engine.max_batch for engine in engines)  # pictures go through all of them together

    def close(self) -> None:
        """Close all engines."""
        for engine in (self.engine, *self.stages):
            engine.close()


def stage_engines(engine: Engine, plans: Sequence[Any]) -> tuple[Engine, ...]:
    """The engines for a plan's stages. Raises `BadInput` where `engine` has not as many."""
    engines: tuple[Engine, ...] = getattr(engine, "stages", ())
    if len(engines) != len(plans):
        found = f"{len(engines)} beside {engine.name}"
        raise BadInput(f"engine: expected {len(plans)} for the stages, found {found}; open it with open_engine(bundle)")
    return engines
