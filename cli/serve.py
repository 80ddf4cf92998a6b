"""`cfgdiff serve`: opens models and engines, and hands them to the HTTP server until Ctrl-C or SIGTERM."""

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .flags import Count, FilePath, log_to_stderr

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from cfgdiff.runtime import Bundle, Engine
    from cfgdiff.runtime.server.drawing import Served
    from cfgdiff.runtime.server.limits import Limits

log = logging.getLogger("cfgdiff")
GRACE = 10  # seconds beyond those of a request, for connections to end after SIGTERM


@click.command(
    epilog="""\b
Examples:
  cfgdiff serve
  cfgdiff serve cifar10-turbo exported/mine --port 9000 --jobs-dir jobs
  cfgdiff serve --host 0.0.0.0 --token-file token.txt --engine openvino"""
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all of them.")
@click.option("--port", default=8000, show_default=True, type=Count(least=0, most=65535), help="0: any free one.")
@click.option("--engine", default="auto", show_default=True, metavar="NAME",
              help="tensorrt, cuda, cpu, openvino; auto: the fastest.")  # fmt: skip
@click.option("--precision", default="auto", show_default=True, metavar="NAME",
              help="A variant of the bundles, or bfloat16 on openvino.")  # fmt: skip
@click.option("--threads", type=Count(most=1024), help="CPU threads of each model. Default: the engine's choice.")
@click.option("--rows", type=Count(most=4096), help="Of the network in a call. Default: what is fastest, measured.")
@click.option("--max-queue", default=4096, show_default=True, type=Count(),
              help="Unfinished pictures of a model; beyond them requests get status 429.")  # fmt: skip
@click.option("--max-n", default=256, show_default=True, type=Count(), help="Pictures of a request; jobs take more.")
@click.option("--max-seconds", default=120.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="From a request to its last picture.")  # fmt: skip
@click.option("--token-file", type=FilePath(), metavar="FILE", help="Clients must send the word in it as bearer token.")
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN",
              help="Let pages of another site use this server, as https://example.org; repeats.")  # fmt: skip
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME",
              help="Answer requests to this name, too; repeats. Default: only local names on a local address, "
                   "any name elsewhere.")  # fmt: skip
@click.option("--jobs-dir", type=FilePath(), metavar="DIR", help="Take jobs, and keep them and their results there.")
@click.option("-v", "--verbose", is_flag=True, help="Say why an engine is taken, and log every request.")
def serve(models: tuple[str, ...], host: str, port: int, rows: int | None, max_queue: int, max_n: int,
          max_seconds: float, token_file: Path | None, origins: tuple[str, ...], hosts: tuple[str, ...],
          jobs_dir: Path | None, verbose: bool, **wanted: Any) -> None:  # fmt: skip
    """Serve models over HTTP: OpenAI's image API, jobs, and a page in the browser.

    MODEL is a bundle, or a packaged model by its name; the first is the default. Without one, both packaged models are
    served. SIGTERM finishes what is asked for, then ends; jobs continue after a restart.
    """
    check_installed()
    from cfgdiff.runtime.server.http import make_app
    from cfgdiff.runtime.server.limits import Limits
    from cfgdiff.runtime.server.orders import Orders

    log_to_stderr(verbose)
    token = None if token_file is None else _token(token_file)
    limits = Limits(pictures=min(max_n, max_queue), seconds=max_seconds)
    with _listening(host, port) as listening:
        with contextlib.ExitStack() as stack:
            served = _opened(models, wanted, {"rows": rows, "most_waiting": max_queue}, stack)
            orders = None if jobs_dir is None else Orders(jobs_dir, {one.bundle.name: one for one in served}, limits)
            app = make_app(served, limits, token, origins, orders, _names(host, hosts))
            stack.pop_all()  # from here on the app closes what it was given
        url = f"http://{_in_url(host)}:{listening.getsockname()[1]}"
        for one in served:
            click.echo(f"{one.bundle.name}: {one.made_by['engine']}, {one.made_by['precision']}", err=True)
        if token is None and not _is_local(host):
            click.echo(f"{host}: whoever reaches it can draw; --token-file asks for a token", err=True)
        click.echo(f"{url}: serving; Ctrl-C ends it", err=True)
        _run(app, listening, limits, verbose)


def check_installed() -> None:
    """Raises `ClickException` where the serve extra is missing."""
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed; pip install 'cfgdiff[serve]' brings it") from None
    del fastapi, prometheus_client, uvicorn


def _token(file: Path) -> str:
    from cfgdiff.runtime.server.guard import new_token

    token = new_token(file.read_bytes().decode("utf-8", "replace"))
    if token is None:
        raise click.UsageError(
            f"--token-file {file}: expected one word of letters, digits and signs, found another text"
        )
    return token


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The socket, before any engine is opened: that may take long."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.ClickException(f"--host {host} --port {port}: cannot listen there ({reason})") from None
    with opened:
        yield opened


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _names(host: str, more: tuple[str, ...]) -> list[str] | None:
    """What requests may call the server; None: anything. On a local address only local names: a page of another site
    whose name leads here would be taken for the server's own by the browser."""
    if not _is_local(host):
        return list(more) or None
    return ["localhost", "127.0.0.1", "[::1]", _in_url(host), *more]


def _opened(models: tuple[str, ...], wanted: dict[str, Any], queue: dict[str, Any], stack: contextlib.ExitStack,
            ) -> "list[Served]":  # fmt: skip
    """The models with their schedulers, which `stack` closes after an error."""
    from cfgdiff.runtime import open_engine
    from cfgdiff.runtime.bundle import PACKAGED, TURBO
    from cfgdiff.runtime.notes import model_note
    from cfgdiff.runtime.server.drawing import Served
    from cfgdiff.runtime.server.scheduler import Scheduler

    from .opening import load_single

    bundles = [load_single(name, "serve steps one network") for name in models or (TURBO, PACKAGED)]
    names = [bundle.name for bundle in bundles]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"MODEL: expected models of different names, found {twice[0]} twice")
    served = list[Served]()
    for bundle in bundles:
        engine = open_engine(bundle, **wanted)
        note = model_note(bundle, engine)
        again = partial(_again, bundle, wanted["threads"])
        scheduler = Scheduler(bundle, engine, **queue, reopen=again)
        stack.callback(scheduler.close, drain=False)
        served.append(Served(bundle, scheduler, note))
    return served


def _again(bundle: "Bundle", threads: int | None, engine: "Engine") -> "Engine":
    """The engine that takes the place of one that failed."""
    from cfgdiff.runtime import open_engine

    return open_engine(bundle, engine.name, engine.precision, threads)


def _run(app: "FastAPI", listening: socket.socket, limits: "Limits", verbose: bool) -> None:
    """Serve until a signal comes and what was asked for is done."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="info" if verbose else "warning", access_log=verbose, server_header=False,
        timeout_graceful_shutdown=int(limits.seconds) + GRACE,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, after the end
        _draining(config).run(sockets=[listening])


def _draining(config: "uvicorn.Config") -> "uvicorn.Server":
    """A server that says at once, when a signal comes, that it accepts nothing any more."""
    import uvicorn

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            config.app.state.server.draining = True  # type: ignore[union-attr]
            super().handle_exit(sig, frame)

    return Draining(config)
