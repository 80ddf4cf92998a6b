"""Two nodes that meet by torchrun's c10d rendezvous, one killed and replaced; and the files in docs/cluster.md."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from cfgdiff.cli.train import train
from cfgdiff.runtime.archives import Tar
from cfgdiff.runtime.errors import Failure
from cfgdiff.trainer import distributed
from cfgdiff.trainer.checkpoint import find_checkpoint, read_checkpoint
from cfgdiff.trainer.distributed import Processes

PICTURES = 240
SETTINGS = [
    "train.precision=float32", f"train.pictures={PICTURES}", "train.batch=8", "train.image_size=16",
    "train.checkpoint_seconds=0.001", "network.channels=16", "network.head_channels=16",
    *(f"callbacks.{name}=null" for name in ("preview", "tensorboard", "snapshots", "validation")),
]  # fmt: skip
CODE = "from cfgdiff.cli.main import main; main()"
PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Nodes:
    """The nodes that a test started; what they print goes into files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()

    def start(self, out: str, *torchrun: str) -> "subprocess.Popen[bytes]":
        """One of a run."""
        chosen = [word for setting in SETTINGS for word in ("--set", setting)]
        work = ["train", "--preset", "smoke", "--data", "shards", "--out", out, "--threads", "1", "--continue"]
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "--no-python", sys.executable, "-c", CODE]
        with self.log(len(self.started)).open("wb") as log:
            node = subprocess.Popen(
                [*command, *work, *chosen], cwd=self.folder, env=ENVIRONMENT, stdout=log, stderr=log
            )
        self.started.append(node)
        return node

    def log(self, k: int) -> Path:
        """What node k has printed."""
        return self.folder / f"{k}.log"

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """With its processes, and without a word, as when a machine goes."""
        if node.poll() is None:
            children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
            for process in (node.pid, *map(int, children)):
                os.kill(process, signal.SIGKILL)
            node.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """None is left running."""
    started = Nodes(tmp_path)
    yield started
    for node in started.started:
        started.kill(node)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes of a node in Linux's /proc")
def test_a_node_that_was_killed_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(
    nodes: Nodes, tmp_path: Path
) -> None:
    write_shards(tmp_path / "shards")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "test", "--nnodes", "2"]
    node = ["--nproc-per-node", "2", "--max-restarts", "2", "--monitor-interval", "0.1", *meeting, "--rdzv-conf"]
    alive = (
        "keep_alive_interval=1,keep_alive_max_attempt=2,is_host="  # of one machine, any node would take itself for it
    )
    first, second = nodes.start("run", *node, f"{alive}true"), nodes.start("run", *node, f"{alive}false")
    while not list((tmp_path / "run" / "checkpoints").glob("0*")):
        time.sleep(0.02)
        assert first.poll() is None and second.poll() is None, nodes.log(0).read_text()
    nodes.kill(second)
    killed_at = read_checkpoint(tmp_path / "run")[0]["pictures_seen"]
    replacement = nodes.start("run", *node, f"{alive}false")
    assert (first.wait(timeout=200), replacement.wait(timeout=20)) == (0, 0), nodes.log(0).read_text()
    shown = "".join(nodes.log(k).read_text() for k in range(3))
    assert killed_at < PICTURES and shown.count("4 x cpu") == 2 and f"done: {PICTURES} pictures" in shown
    assert nodes.start("whole", "--standalone", "--nproc-per-node", "4").wait(timeout=200) == 0
    run, whole = (load_file(find_checkpoint(tmp_path / out) / "tensors.safetensors") for out in ("run", "whole"))
    assert run.keys() == whole.keys() and all(torch.equal(run[name], whole[name]) for name in whole)


def write_shards(folder: Path) -> None:
    """Three shards of 20 random pictures."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    for k in range(3):
        with (folder / f"{k}.tar").open("x+b") as file:
            tar = Tar(file, np.arange(20) % 3, lambda i: {"class": "abc"[i % 3]}, "png")
            tar.add(np.arange(20), pictures + np.uint8(k))
            tar.finish()


def test_a_process_that_is_at_another_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where machines share no file system, and only some find a checkpoint."""
    values = [0, 96, 0, 0]
    sums = iter([0.0, 1.0, 0.0, 0.0])

    def all_reduce(tensor: torch.Tensor) -> None:
        tensor[0] = next(sums)

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    cpu = torch.device("cpu")
    message = r"pictures: expected 0 in all processes, as in the first, found others in 1; --out must be one folder"
    with pytest.raises(Failure, match=message):
        Processes(cpu, 1, len(values)).check_same(values[1], "pictures")
    Processes(cpu, 0, 4).check_same(0, "pictures")
    Processes(cpu).check_same(5, "pictures")


def block(title: str) -> str:
    """The file of that name on the page."""
    found = re.search(rf'^```\w+ title="{title}"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def check_command(words: list[str]) -> Any:
    """That both torchrun and `cfgdiff train` know the flags; gives those of torchrun."""
    at = words.index("cfgdiff")
    assert words[0] == "torchrun" and words[at + 1] == "train"
    train.make_context("train", words[at + 2 :])
    known = get_args_parser().parse_args([*words[1:at], "cfgdiff"])
    assert known.no_python and "--continue" in words
    return known


def test_the_slurm_file_is_a_script_whose_flags_exist() -> None:
    text = block("train.sbatch")
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.+))?$", text, re.MULTILINE))
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue",
             "open-mode", "output"}  # fmt: skip
    assert options.keys() == known and text.count("#SBATCH") == len(known) and options["ntasks-per-node"] == "1"
    variables = {"SLURM_NNODES": options["nodes"], "SLURM_JOB_ID": "12345678", "host": "n1", "port": "25678"}
    (line,) = re.findall(r"^srun (torchrun (?:.*\\\n)*.*)$", text, re.MULTILINE)
    words = shlex.split(re.sub(r"\$(\w+)", lambda name: variables[name[1]], line.replace("\\\n", " ")))
    torchrun = check_command(words)
    assert (torchrun.nnodes, torchrun.nproc_per_node) == (options["nodes"], options["gpus-per-node"])
    assert torchrun.rdzv_backend == "c10d" and torchrun.rdzv_endpoint == "n1:25678"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text


def test_the_slurm_file_runs_with_stand_ins_for_slurm(tmp_path: Path) -> None:
    """scontrol and srun that print: what the first node is asked to run."""
    for name, body in (
        ("scontrol", "printf 'n7\\nn8\\n'"),
        ("srun", 'printf "%s " "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "n[7-8]", "SLURM_NNODES": "4", "SLURM_JOB_ID": "7"}
    env = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash"], input=block("train.sbatch"), text=True, capture_output=True, env=env)
    assert ran.returncode == 0 and ran.stdout.startswith("1 torchrun --nnodes 4"), ran.stderr
    assert "--rdzv-endpoint n7:20007 --rdzv-id 7 " in ran.stdout


def test_the_kubernetes_file_is_a_job_whose_parts_agree() -> None:
    job = yaml.safe_load(block("train.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec, (worker,) = job["spec"], job["spec"]["pytorchReplicaSpecs"].values()
    policy, pod = spec["elasticPolicy"], worker["template"]["spec"]
    assert policy["rdzvBackend"] == "c10d" and policy["minReplicas"] == policy["maxReplicas"] == worker["replicas"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch" and worker["restartPolicy"] == "OnFailure"
    check_command(container["command"] + container["args"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]
    assert all(isinstance(entry["value"], str) for entry in container["env"]), "variables are strings"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_variables_of_the_operator_are_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NNODES", "4"), ("NPROC_PER_NODE", "8"), ("RDZV_ENDPOINT", "w-0:23456")):
        assert f"`PET_{name}`" in PAGE
        monkeypatch.setenv(f"PET_{name}", value)
    told = get_args_parser().parse_args(["--no-python", "cfgdiff"])
    assert (told.nnodes, told.nproc_per_node, told.rdzv_endpoint) == ("4", "8", "w-0:23456")
