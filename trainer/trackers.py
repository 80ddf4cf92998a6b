"""Experiment trackers as callbacks: `--set callbacks.wandb='{project: mine}'`, and the same for trackio."""

import importlib
from typing import Any

from cfgdiff.runtime.errors import Failure

from .run import Callback, Run


class _Tracker(Callback):
    """Passes every report to a tracker, under the pictures seen."""

    package = ""

    def __init__(self, run: Run, *, project: str = "cfgdiff", run_name: str | None = None) -> None:
        try:
            self._tracker: Any = importlib.import_module(self.package)
        except ModuleNotFoundError:
            remedy = f"pip install {self.package}, or leave it out"
            raise Failure(f"callbacks.{self.package}: {self.package} is not installed; {remedy}") from None
        name = run_name or run.out.resolve().name
        self._tracker.init(project=project, name=name, config=run.config.model_dump(mode="json"), **self.more(run))

    def more(self, run: Run) -> dict[str, Any]:
        """Further arguments of its `init`."""
        return {}

    def metrics(self, run: Run, values: dict[str, float]) -> None:
        """Passes on one report."""
        self._tracker.log(values, step=run.pictures_seen)

    def end(self, run: Run, done: bool) -> None:
        """Closes the tracker."""
        self._tracker.finish()


class Wandb(_Tracker):
    """Reports to Weights & Biases; needs the package wandb, and WANDB_MODE=offline where there is no network."""

    package = "wandb"

    def more(self, run: Run) -> dict[str, Any]:
        """Its files go into the run's folder."""
        return {"dir": str(run.out)}


class Trackio(_Tracker):
    """Reports to Trackio, which keeps everything on this machine; needs the package trackio."""

    package = "trackio"
