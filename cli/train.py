"""`cfgdiff train`: reads the flags, hands over to cfgdiff.trainer, shows progress."""

import shlex
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


def _show_presets(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from cfgdiff.trainer.config import preset_names

        click.echo("\n".join(preset_names()))
        ctx.exit()


@click.command(
    epilog="""\b
Examples:
  cfgdiff train --preset smoke --data DATA --out runs/smoke
  cfgdiff train --preset cifar10-small --data DATA --out runs/small --max-minutes 120
  cfgdiff train --resume runs/small --data DATA --set train.pictures=2000000
  cfgdiff train --preset cifar10-small --init runs/small --data DATA --out runs/more"""
)
@click.option("--preset", metavar="NAME", help="cifar10-small, cifar10-paper or smoke (see --list-presets).")
@click.option(
    "--data",
    required=True,
    type=PATH,
    help="CIFAR-10 (python layout), or a folder with one sub-folder of pictures a class.",
)
@click.option("--out", type=PATH, help="Folder of the new run.")
@click.option("--resume", "resumed", type=PATH, help="Go on with this run, in its folder.")
@click.option("--init", type=PATH, help="Start a new run from the weights of a checkpoint, run or bundle.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, as in train.batch=64. Repeats.")
@click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="End the run, decay included, after this time at the latest.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: all cores.")
@click.option("--dry-run", is_flag=True, help="Print the settings and stop.")
@click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=_show_presets, help="List the presets and stop.")
def train(preset: str | None, data: Path, out: Path | None, resumed: Path | None, init: Path | None, overrides: tuple[str, ...],
          max_minutes: float | None, threads: int | None, dry_run: bool) -> None:  # fmt: skip
    """Train a class-conditional diffusion model with classifier-free guidance."""
    if (resumed is None) == (preset is None):
        raise click.UsageError("give --preset NAME for a new run, or --resume RUN to go on with one (not both)")
    if resumed and (out or init):
        raise click.UsageError("--resume goes on in its own folder: drop --out and --init")
    if preset and not out and not dry_run:
        raise click.UsageError("--out RUN is missing: the folder of the new run")
    from cfgdiff.trainer.config import Config, load_preset, make_config

    config = make_config(load_preset(preset), overrides) if preset else None
    if dry_run and config:
        click.echo(config.model_dump_json(indent=2))
        return
    if out and (out / "checkpoints").exists():
        raise click.UsageError(f"--out {out}: a run is already there; go on with --resume {out}, or choose another folder")
    import torch

    from cfgdiff.trainer.data import load_data
    from cfgdiff.trainer.loop import Run, resume

    if threads:
        torch.set_num_threads(threads)
    command = _recorded_command(preset, overrides, max_minutes)

    def load(settings: Config) -> Any:
        return load_data(data, settings.train.image_size)

    if resumed:
        run = resume(resumed, lambda tree: make_config(tree, overrides), load, command, max_minutes)
    else:
        assert config and out
        run = Run(config, load(config), out, command, max_minutes)
        if init:
            run.start_from(init)
    _train_with_progress(run, data)


def _recorded_command(preset: str | None, overrides: tuple[str, ...], max_minutes: float | None) -> str:
    """What goes into the provenance: the settings as typed, without the paths of this machine."""
    words = ["cfgdiff train", f"--preset {preset}" if preset else "--resume RUN", *(f"--set {o}" for o in overrides)]
    return " ".join([*words, f"--max-minutes {max_minutes:g}"] if max_minutes else words)


def _train_with_progress(run: Any, data: Path) -> None:
    from tqdm import tqdm

    from cfgdiff.trainer.loop import train as train_loop

    parameters = sum(p.numel() for p in run.network.parameters())
    click.echo(
        f"{len(run.data.labels):,} pictures in {len(run.data.class_names)} classes; {parameters:,} parameters; "
        f"{run.device.type}, {run.precision}; run {run.out}",
        err=True,
    )
    average = 0.0
    with tqdm(total=run.config.train.pictures, initial=run.pictures_seen, unit="pictures", smoothing=0.05, mininterval=1) as bar:

        def report(n: int, value: float) -> None:
            nonlocal average
            average = 0.98 * average + 0.02 * value if average else value
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            bar.update(n)

        done = train_loop(run, report)
    if not done:
        limit = ["--max-minutes", f"{run.max_minutes:g}"] if run.max_minutes else []
        again = shlex.join(["cfgdiff", "train", "--resume", str(run.out), "--data", str(data), *limit])
        click.echo(f"stopped; go on with: {again}", err=True)
        return
    loss = "" if run.test_loss is None else f", test loss {run.test_loss:.4f}"
    click.echo(f"done: {run.pictures_seen:,} pictures{loss}; export with: {shlex.join(['cfgdiff', 'export', str(run.out)])}", err=True)
