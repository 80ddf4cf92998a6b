"""`cfgdiff train`: reads the flags, hands over to cfgdiff.trainer, shows progress."""

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cfgdiff.trainer.config import Config
    from cfgdiff.trainer.data import PictureSet
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
        raise click.UsageError(
            "--processes starts processes itself, and torchrun has started this one: drop one of the two"
        )
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
  cfgdiff train --preset cifar10-guided --teacher runs/small --data DATA --out runs/guided
  cfgdiff train --preset cifar10-turbo --teacher runs/guided --data DATA --out runs/turbo
  torchrun --nproc-per-node 8 --no-python cfgdiff train --preset cifar10-paper --out runs/paper

With --processes, and under torchrun, which adds several machines and restarts, every process trains on its share of
train.batch; pictures, order and noise are those of one process."""
)
@click.option("--preset", metavar="NAME", help="cifar10-small, cifar10-turbo or another of --list-presets.")
@click.option(
    "--data",
    type=PATH,
    help="CIFAR-10 (python layout; the word cifar10 downloads it), a folder with one sub-folder of pictures a class "
    "(or train/ and test/ with these), a folder, pattern or URL of WebDataset shards (.tar), an .npz (pictures, "
    "labels), or a data set of Hugging Face with "
    "--set data.name=huggingface. Default: that of the run with --resume, else cifar10. "
    "cfgdiff info --data shows what is read.",
)
@click.option(
    "--skip-broken", is_flag=True, help="Leave out pictures of a folder that cannot be read, instead of stopping."
)
@click.option("--out", type=PATH, help="Folder of the new run.")
@click.option("--continue", "continued", is_flag=True,
              help="Resume the run in --out where one is there: for jobs that a cluster starts again.")  # fmt: skip
@click.option("--resume", "resumed", type=PATH, help="Continue this run, in its folder.")
@click.option("--init", type=PATH, help="Start a new run from the weights of a checkpoint, run or bundle.")
@click.option("--teacher", type=PATH, help="The run, checkpoint or bundle that objectives of cifar10-turbo and "
              "cifar10-guided learn from. Its weights are the start, too, unless --init names others.")  # fmt: skip
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, as in train.batch=64. Repeats."
)
@plugin_option
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True),
              help="End the run, decay included, after this time at the latest.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads of all processes together. Default: all cores."
)
@click.option("--processes", default="1", show_default=True, metavar="N|auto", callback=_read_processes,
              help="Train with this many processes on this machine; auto: one for each GPU, or without a GPU one for "
              "each core.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
@click.option("--profile", is_flag=True, help="Train a few steps, print where their time goes, write nothing and stop.")
@click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=_show_presets,
              help="List the presets and stop.")  # fmt: skip
def train(**flags: Any) -> None:
    """Train a class-conditional diffusion model with classifier-free guidance."""
    given = Flags(**flags)
    _check_together(given)
    from cfgdiff.runtime.errors import BadInput
    from cfgdiff.trainer.config import BadSetting

    try:
        _train(given)
    except BadSetting as error:
        raise BadInput(f"--set {error}") from None


@dataclass(frozen=True)
class Flags:
    """The flags of `cfgdiff train` as they were given; picklable, for every process of a run reads them."""

    preset: str | None
    data: Path | None
    skip_broken: bool
    out: Path | None
    continued: bool
    resumed: Path | None
    init: Path | None
    teacher: Path | None
    overrides: tuple[str, ...]
    plugins: tuple[Path, ...]
    max_minutes: float | None
    threads: int | None
    processes: int | None  # None for auto
    dry_run: bool
    profile: bool


def _check_together(flags: Flags) -> None:
    if (flags.resumed is None) == (flags.preset is None):
        raise click.UsageError("give --preset NAME for a new run, or --resume RUN to continue one (not both)")
    if flags.resumed and (flags.out or flags.init or flags.teacher or flags.continued):
        raise click.UsageError("--resume continues a run in its own folder: drop --out, --continue, --init, --teacher")
    if flags.preset and not flags.out and not (flags.dry_run or flags.profile):
        raise click.UsageError("--out RUN is missing: the folder of the new run")


def _train(flags: Flags) -> None:
    from cfgdiff.trainer.config import load_preset, make_config
    from cfgdiff.trainer.registry import bound, check_name, load_plugins

    load_plugins(flags.plugins)
    overrides = flags.overrides + (("data.options={skip_broken: true}",) if flags.skip_broken else ())
    if flags.teacher is not None:
        overrides += (f"objective.teacher={json.dumps(str(flags.teacher.absolute()))}",)
        flags = replace(flags, init=flags.init or flags.teacher)
    flags, state = replace(flags, overrides=overrides), {} if flags.resumed is None else _state_of(flags.resumed)
    config = make_config(load_preset(str(flags.preset)) if flags.resumed is None else state["config"], overrides)
    for kind, name, options in config.parts:
        check_name(kind, name)
        if options:
            bound(kind, name, options)
    if flags.dry_run:
        click.echo(config.model_dump_json(indent=2))
        return
    from cfgdiff.trainer.checkpoint import has_checkpoint
    from cfgdiff.trainer.distributed import restarted

    flags = replace(flags, data=flags.data or _remembered(state, flags.resumed))
    if flags.out and has_checkpoint(flags.out):
        if not (flags.continued or restarted()):
            remedy = f"continue it with --resume {flags.out} or --continue, or choose another folder"
            raise click.UsageError(f"--out {flags.out}: a run is already there; {remedy}")
        flags = replace(flags, resumed=flags.out)  # torchrun starts the same command again after a failure
    _start(replace(flags, processes=_count(flags, config)))


def _count(flags: Flags, config: "Config") -> int:
    """How many processes to start. What can be checked before they start is checked here."""
    if flags.processes == 1:
        return 1
    from cfgdiff.runtime.threads import cores
    from cfgdiff.trainer.data import reader_of
    from cfgdiff.trainer.launch import gpus, how_many

    if config.data.name == "auto" and flags.data:
        reader_of(flags.data)
    return how_many(flags.processes, config.train.batch, config.train.accumulate, gpus(), cores())


def _start(flags: Flags) -> None:
    """Run `_work` in this process (one of torchrun's, maybe), or in as many as the flags say."""
    if flags.processes and flags.processes > 1:
        from cfgdiff.trainer.launch import launch

        launch(flags.processes, flags.threads, partial(_work, flags))
        return
    from cfgdiff.trainer.distributed import joined

    with joined() as processes:
        if flags.threads:
            import torch

            torch.set_num_threads(flags.threads)
        _work(flags, processes)


def _work(flags: Flags, processes: "Processes") -> None:
    """The work of each process."""
    from cfgdiff.trainer.build import add_callbacks
    from cfgdiff.trainer.registry import load_plugins
    from cfgdiff.trainer.start import start_from

    from .progress import train_with_progress

    load_plugins(flags.plugins)
    run = _open_run(flags, processes)
    processes.check_same(run.pictures_seen, "pictures seen so far")
    if flags.init and not flags.resumed:
        start_from(run, flags.init)
    if flags.profile:
        _profile(run)
        return
    if processes.main:
        _make_folder(run.out)
    add_callbacks(run)
    train_with_progress(run, _again(flags))


def _open_run(flags: Flags, processes: "Processes") -> "Run":
    """The run that is resumed, or a new one."""
    from cfgdiff.trainer.build import new_run
    from cfgdiff.trainer.config import load_preset, make_config
    from cfgdiff.trainer.data import load_data
    from cfgdiff.trainer.shard_order import as_url, lies_here
    from cfgdiff.trainer.start import resume

    data = flags.data or Path()

    def load(config: "Config") -> "PictureSet":
        with processes.main_first():
            return load_data(data, config.train.image_size, config.data.name, config.data.options)

    kept = os.path.abspath(data) if lies_here(data) else as_url(data) or str(data)  # or a name on a hub, or cifar10
    beside = _recorded_command(flags), flags.max_minutes, processes, kept
    if flags.resumed:
        return resume(flags.resumed, lambda tree: make_config(tree, flags.overrides), load, *beside)
    config = make_config(load_preset(str(flags.preset)), flags.overrides)
    return new_run(config, load(config), flags.out or Path(), *beside)


def _again(flags: Flags) -> list[str]:
    """The words after `cfgdiff train --resume RUN` that continue the run."""
    words = [word for file in flags.plugins for word in ("--plugin", str(file))]
    words += ["--max-minutes", f"{flags.max_minutes:g}"] if flags.max_minutes else []
    return words + (["--processes", str(flags.processes)] if flags.processes != 1 else [])


def _state_of(run: Path) -> dict[str, Any]:
    from cfgdiff.trainer.checkpoint import read_checkpoint

    return read_checkpoint(run)[0]


def _remembered(state: dict[str, Any], run: Path | None) -> Path:
    """The data of a run. Raises `Failure` where they are no longer there."""
    from cfgdiff.trainer.shard_order import lies_here

    kept = state.get("data") or "cifar10"
    if os.path.isabs(kept) and not lies_here(Path(kept)):
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


def _profile(run: "Run") -> None:
    import tempfile

    from cfgdiff.trainer.build import add_callbacks
    from cfgdiff.trainer.profiling import profile_steps

    with tempfile.TemporaryDirectory() as folder:
        run.out = Path(folder)
        add_callbacks(run)
        table = profile_steps(run)
    if run.processes.main:
        click.echo(table)


def _recorded_command(flags: Flags) -> str:
    """The command line for the provenance: the settings as typed, without the paths of this machine."""
    words = ["cfgdiff train", f"--preset {flags.preset}" if flags.preset else "--resume RUN"]
    words += [f"--plugin {file.name}" for file in flags.plugins]
    words += [f"--set {override}" for override in flags.overrides if not override.startswith("objective.teacher=")]
    words += ["--teacher TEACHER"] if flags.teacher else []
    return " ".join([*words, f"--max-minutes {flags.max_minutes:g}"] if flags.max_minutes else words)
