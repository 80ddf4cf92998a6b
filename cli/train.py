"""`cfgdiff train`: reads the flags, hands over to cfgdiff.trainer, shows progress."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cfgdiff.trainer.config import Config
    from cfgdiff.trainer.distributed import Processes
    from cfgdiff.trainer.run import Run

PATH = click.Path(path_type=Path)
PLUGIN_HELP = "Load parts of a run from this file (see cfgdiff plugins). Repeats."
plugin_option = click.option("--plugin", "plugins", multiple=True, type=PATH, metavar="FILE.py", help=PLUGIN_HELP)


def _show_presets(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from cfgdiff.trainer.config import preset_names

        click.echo("\n".join(preset_names()))
        ctx.exit()


def _read_processes(_: click.Context, __: click.Parameter, value: str) -> int | None:
    """None for auto."""
    if value != "auto" and not (value.isdecimal() and int(value) > 0):
        raise click.BadParameter(f"expected a number from 1 on, or auto; found '{value}'")
    if value != "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        raise click.UsageError("--processes starts processes itself, and torchrun has started this one: drop one of the two")
    return None if value == "auto" else int(value)


@click.command(
    epilog="""\b
Examples:
  cfgdiff train --preset smoke --data DATA --out runs/smoke
  cfgdiff train --preset cifar10-small --data DATA --out runs/small --max-minutes 120
  cfgdiff train --preset cifar10-small --processes auto --out runs/small
  cfgdiff train --resume runs/small --set train.pictures=2000000
  cfgdiff train --preset cifar10-small --init runs/small --data DATA --out runs/more
  cfgdiff train --preset smoke --plugin mine.py --set data.name=mine --data . --out runs/mine
  torchrun --nproc-per-node 8 --no-python cfgdiff train --preset cifar10-paper --out runs/paper

With --processes, and under torchrun, which is for several machines and for restarts, every process trains on its share of
train.batch; pictures, order and noise are those of one process."""
)
@click.option("--preset", metavar="NAME", help="cifar10-small, cifar10-paper or smoke (see --list-presets).")
@click.option(
    "--data",
    type=PATH,
    help="CIFAR-10 (python layout; the word cifar10 downloads it), a folder with one sub-folder of pictures a class (or train/ and test/ "
    "with these), an .npz (pictures, labels), or a data set of Hugging Face with --set data.name=huggingface. Default: the one of the "
    "run with --resume, else cifar10. cfgdiff info --data shows what is read.",
)
@click.option("--skip-broken", is_flag=True, help="Leave out pictures of a folder that cannot be read, instead of stopping.")
@click.option("--out", type=PATH, help="Folder of the new run.")
@click.option("--resume", "resumed", type=PATH, help="Go on with this run, in its folder.")
@click.option("--init", type=PATH, help="Start a new run from the weights of a checkpoint, run or bundle.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, as in train.batch=64. Repeats.")
@plugin_option
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="End the run, decay included, after this time at the latest.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of all processes together. Default: all cores.")
@click.option(
    "--processes",
    default="1",
    show_default=True,
    metavar="N|auto",
    callback=_read_processes,
    help="Train with this many processes on this machine; auto: one for each GPU, or without a GPU one for each core.",
)
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
@click.option("--profile", is_flag=True, help="Train a few steps, print where their time goes, write nothing and stop.")
@click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=_show_presets, help="List the presets and stop.")
def train(preset: str | None, data: Path | None, skip_broken: bool, out: Path | None, resumed: Path | None, init: Path | None,
          overrides: tuple[str, ...], plugins: tuple[Path, ...], max_minutes: float | None, threads: int | None,
          processes: int | None, dry_run: bool, profile: bool) -> None:  # fmt: skip
    """Train a class-conditional diffusion model with classifier-free guidance."""
    if (resumed is None) == (preset is None):
        raise click.UsageError("give --preset NAME for a new run, or --resume RUN to go on with one (not both)")
    if resumed and (out or init):
        raise click.UsageError("--resume goes on in its own folder: drop --out and --init")
    if preset and not out and not (dry_run or profile):
        raise click.UsageError("--out RUN is missing: the folder of the new run")
    from cfgdiff.trainer.config import load_preset, make_config
    from cfgdiff.trainer.registry import bound, check_name, load_plugins

    load_plugins(plugins)
    if skip_broken:
        overrides += ("data.options={skip_broken: true}",)
    state = {} if resumed is None else _state_of(resumed)
    config = make_config(load_preset(str(preset)) if resumed is None else state["config"], overrides)
    for kind, name, options in config.parts:
        check_name(kind, name)
        if options:
            bound(kind, name, options)
    if dry_run:
        click.echo(config.model_dump_json(indent=2))
        return
    from cfgdiff.trainer.checkpoint import has_checkpoint
    from cfgdiff.trainer.distributed import restarted

    data = data or _remembered(state, resumed)
    if out and has_checkpoint(out):
        if not restarted():
            raise click.UsageError(f"--out {out}: a run is already there; go on with --resume {out}, or choose another folder")
        resumed = out  # torchrun starts the same command again after a failure
    command, count = _recorded_command(preset, overrides, plugins, max_minutes), _count(processes, config, data)
    work = partial(
        _work, config=None if resumed else config, overrides=overrides, plugins=plugins, data=data, folder=resumed or out or Path(),
        init=None if resumed else init, command=command, max_minutes=max_minutes, profile=profile,
        again=_again(plugins, max_minutes, count),
    )  # fmt: skip
    _start(work, count, threads)


def _count(processes: int | None, config: "Config", data: Path) -> int:
    """How many processes to start. What can be checked before they start is checked here."""
    if processes == 1:
        return 1
    from cfgdiff.runtime.threads import cores
    from cfgdiff.trainer.data import reader_of
    from cfgdiff.trainer.launch import gpus, how_many

    if config.data.name == "auto":
        reader_of(data)
    return how_many(processes, config.train.batch, config.train.accumulate, gpus(), cores())


def _start(work: "partial[None]", count: int, threads: int | None) -> None:
    """Run `work` in this process (one of torchrun's, maybe), or in `count` that are started."""
    if count > 1:
        from cfgdiff.trainer.launch import launch

        launch(count, threads, work)
        return
    from cfgdiff.trainer.distributed import joined

    with joined() as processes:
        if threads:
            import torch

            torch.set_num_threads(threads)
        work(processes)


def _work(processes: "Processes", config: "Config | None", overrides: tuple[str, ...], plugins: tuple[Path, ...], data: Path, folder: Path,
          init: Path | None, command: str, max_minutes: float | None, profile: bool, again: list[str]) -> None:  # fmt: skip
    """What each process does."""
    from cfgdiff.trainer.registry import load_plugins

    from .progress import train_with_progress

    load_plugins(plugins)
    run = _open_run(config, overrides, data, folder, command, max_minutes, processes)
    if init:
        run.start_from(init)
    if profile:
        _profile(run)
        return
    if processes.main:
        _make_folder(run.out)
    run.add_callbacks()
    train_with_progress(run, again)


def _again(plugins: tuple[Path, ...], max_minutes: float | None, count: int) -> list[str]:
    """The words after `cfgdiff train --resume RUN` that go on with a run."""
    words = [word for file in plugins for word in ("--plugin", str(file))]
    words += ["--max-minutes", f"{max_minutes:g}"] if max_minutes else []
    return words + (["--processes", str(count)] if count > 1 else [])


def _state_of(run: Path) -> dict[str, Any]:
    from cfgdiff.trainer.checkpoint import read_checkpoint

    return read_checkpoint(run)[0]


def _remembered(state: dict[str, Any], run: Path | None) -> Path:
    """The data of a run. Raises `Failure` where they are no longer there."""
    kept = state.get("data") or "cifar10"
    if os.path.isabs(kept) and not os.path.exists(kept):
        from cfgdiff.runtime.errors import Failure

        raise Failure(f"--resume {run}: its data {kept} are no longer there; give them with --data")
    return Path(kept)


def _make_folder(out: Path) -> None:
    """Before hours of training, not after."""
    from cfgdiff.runtime.errors import Failure

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable.partial").touch()
        (out / ".writable.partial").unlink()
    except OSError as error:
        raise Failure(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def _open_run(config: "Config | None", overrides: tuple[str, ...], data: Path, folder: Path, command: str, max_minutes: float | None,
              processes: "Processes") -> "Run":  # fmt: skip
    """A new run, or without a config the one in `folder`."""
    from cfgdiff.trainer.config import make_config
    from cfgdiff.trainer.data import load_data
    from cfgdiff.trainer.run import Run, resume

    def load(settings: "Config") -> Any:
        with processes.main_first():
            return load_data(data, settings.train.image_size, settings.data.name, settings.data.options)

    kept = os.path.abspath(data) if data.exists() else str(data)  # a name on a hub, or the word cifar10
    if config is None:
        return resume(folder, lambda tree: make_config(tree, overrides), load, command, max_minutes, processes, kept)
    return Run(config, load(config), folder, command, max_minutes, processes, kept)


def _profile(run: "Run") -> None:
    import tempfile

    from cfgdiff.trainer.profiling import profile_steps

    with tempfile.TemporaryDirectory() as folder:
        run.out = Path(folder)
        run.add_callbacks()
        table = profile_steps(run)
    if run.processes.main:
        click.echo(table)


def _recorded_command(preset: str | None, overrides: tuple[str, ...], plugins: tuple[Path, ...], max_minutes: float | None) -> str:
    """What goes into the provenance: the settings as typed, without the paths of this machine."""
    words = ["cfgdiff train", f"--preset {preset}" if preset else "--resume RUN"]
    words += [f"--plugin {file.name}" for file in plugins] + [f"--set {o}" for o in overrides]
    return " ".join([*words, f"--max-minutes {max_minutes:g}"] if max_minutes else words)
