"""Experiment trackers as callbacks: `--set callbacks.wandb='{project: mine}'`, and the same for trackio. Both speak the same interface."""

import importlib
from typing import TYPE_CHECKING, Any

from cfgdiff.runtime.errors import Failure

from .callbacks import Callback

if TYPE_CHECKING:
    from .run import Run


class _Tracker(Callback):
    """Hands every report to a tracker, under the pictures seen."""

    package = ""

    def __init__(self, run: "Run", *, project: str = "cfgdiff", run_name: str | None = None) -> None:
        try:
            self._tracker: Any = importlib.import_module(self.package)
        except ModuleNotFoundError:
            raise Failure(f"callbacks.{self.package}: it is not installed; pip install {self.package}, or leave it out") from None
        name = run_name or run.out.resolve().name
        self._tracker.init(project=project, name=name, config=run.config.model_dump(mode="json"), **self.more(run))

    def more(self, run: "Run") -> dict[str, Any]:
        """What else its `init` is given."""
        return {}

    def metrics(self, run: "Run", values: dict[str, float]) -> None:
        """Hands on one report."""
        self._tracker.log(values, step=run.pictures_seen)

    def end(self, run: "Run", done: bool) -> None:
        """Tells the tracker that no more will come."""
        self._tracker.finish()


class Wandb(_Tracker):
    """Reports to Weights & Biases; needs the package wandb, and WANDB_MODE=offline where there is no network."""

    package = "wandb"

    def more(self, run: "Run") -> dict[str, Any]:
        """Its files go into the run's folder."""
        return {"dir": str(run.out)}


class Trackio(_Tracker):
    """Reports to Trackio, which keeps everything on this machine; needs the package trackio."""

    package = "trackio"
