"""Starts the processes of a run on this machine, and stops them together; see distributed.py for what they do.

They meet as those of torchrun do, in a store that this process keeps at a free port. Only torchrun can use several
machines, and restart processes.
"""

import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from cfgdiff.runtime.errors import BadInput, Failure
from cfgdiff.runtime.threads import cores

from .distributed import Processes, joined

Work = Callable[[Processes], None]
STOPS = (signal.SIGINT, signal.SIGTERM)


def gpus() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def how_many(wanted: int | None, batch: int, parts: int, on_gpus: int, on_cores: int) -> int:
    """The number of processes: `wanted`, or for None one a GPU, else one a core, as many as can share the batch evenly.

    Raises `BadInput` for more than there are GPUs, and as `Processes.rows`.
    """
    if wanted is None:
        return next((n for n in range(on_gpus or on_cores, 1, -1) if batch % (n * parts) == 0), 1)
    if on_gpus and wanted > on_gpus:
        raise BadInput(f"processes: expected at most one for each GPU, of which there are {on_gpus}; found {wanted}")
    Processes(torch.device("cpu"), 0, wanted).rows(batch, parts)
    return wanted


def launch(count: int, threads: int | None, work: Work) -> None:
    """Run `work`, which must be picklable, to its end in `count` processes that share `threads` (by default all cores).

    SIGINT and SIGTERM are passed on to all of them, once. Raises the first error of a process, or `Failure` where one
    was killed.
    """
    share = max(1, (threads or min(cores(), torch.get_num_threads())) // count)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it would report what it terminates
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        for child in children.processes if len(received) == 1 else ():
            child.terminate()

    arguments = count, store.port, share, work, failures
    with _signals_held(), _variable("OMP_NUM_THREADS", str(share)):  # held until the children have set handlers, too
        children = start_processes(_child, arguments, count, join=False, start_method="spawn")
        previous = {number: signal.signal(number, pass_on) for number in STOPS}
    try:
        while not children.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as end:
        if received and -getattr(end, "exit_code", 1) in STOPS:
            if received[0] == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + received[0]) from None  # what a shell shows of a process that the signal ended
        _raise_first(failures, end, count)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _child(rank: int, count: int, port: int, threads: int, work: Work, failures: "SimpleQueue[Any]") -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)  # end at once, without a word, until the training loop knows better
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    torch.set_num_threads(threads)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ["TORCHELASTIC_RUN_ID"] = "launch"
    with ExitStack() as stack:
        try:
            work(stack.enter_context(joined()))
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)  # all is done
        except Exception as error:
            known = isinstance(error, Failure | OSError | ImportError)  # what the command line has a line for
            report = error if known else None, traceback.format_exc()
            failures.put(report)  # before the others fail for want of this process
            raise SystemExit(1) from None


def _raise_first(failures: "SimpleQueue[Any]", end: Any, count: int) -> None:
    code = getattr(end, "exit_code", 1)
    if code != 1 or failures.empty():
        how = f"was killed by {end.signal_name}" if code < 0 else f"ended with exit code {code}"
        why = " (is there too little memory?)" if code == -signal.SIGKILL else ""
        remedy = "resume the run to continue from its last checkpoint"
        raise Failure(f"process {end.error_index + 1} of {count} {how}{why}; {remedy}") from None
    error, text = failures.get()
    if error is not None:
        raise error from None
    sys.stderr.write(text)
    raise SystemExit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before, os.environ[name] = os.environ.get(name), value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
