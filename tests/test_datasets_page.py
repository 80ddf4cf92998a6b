"""docs/datasets.md: its Python examples print what they say, and its jobs are right for Slurm and Kubernetes."""

import re
import shlex
from pathlib import Path

import pytest

from cfgdiff.cli.run import command, main
from cfgdiff.cli.shard_flags import taken

PAGE = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n((?:.*\n)+?)```$", PAGE, re.MULTILINE)
COMMANDS = re.findall(r"^    (cfgdiff-run .+)$", PAGE, re.MULTILINE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_the_python_examples_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for package in ("datasets", "webdataset"):
        pytest.importorskip(package, reason="needs the dev extra: pip install 'cfgdiff[dev]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for line in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(line)[1:], "--engine", "cpu"])
        assert end.value.code == 0
    examples = [block for language, block in BLOCKS if language == "python"]
    assert len(examples) == 3
    for example in examples:
        capsys.readouterr()
        exec(example, {})
        printed = capsys.readouterr().out
        if said := re.search(r"print\(.*\)  # (.+)$", example, re.MULTILINE):
            assert printed == f"{said[1]}\n"
    assert re.fullmatch(r"(shard-00000\d\.tar \(50, 32, 32, 3\) [0-9a-f]{8}\n){4}", printed)


def parsed(arguments: list[str]) -> dict:
    return command.make_context("cfgdiff-run", arguments).params


def test_the_slurm_array_is_a_script_whose_command_parses() -> None:
    ((_, script),) = [(language, block) for language, block in BLOCKS if language == "bash"]
    first, last = map(int, re.findall(r"#SBATCH --array=(\d+)-(\d+)", script)[0])
    variables = {"SLURM_CPUS_PER_TASK": "4", "SLURM_ARRAY_TASK_ID": str(last), "SLURM_ARRAY_TASK_COUNT": str(last + 1)}
    line = script[script.index("srun") :].replace("\\\n", "")
    words = shlex.split(re.sub(r"\$(\w+)", lambda match: variables[match[1]], line))
    sharding = taken(parsed(words[2:]))
    assert words[:2] == ["srun", "cfgdiff-run"] and script.startswith("#!/bin/bash\n#SBATCH") and first == 0
    assert sharding is not None and (sharding.part, sharding.size, sharding.shared) == ((last, last + 1), 10_000, True)


def test_the_kubernetes_job_is_valid_and_its_pods_make_all_shards() -> None:
    yaml = pytest.importorskip("yaml", reason="needs the train extra: pip install 'cfgdiff[train]'")
    ((_, text),) = [(language, block) for language, block in BLOCKS if language == "yaml"]
    job = yaml.safe_load(text)
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never" and container["command"] == ["cfgdiff-run"]
    shares = set()
    for index in range(spec["completions"]):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["args"]]
        sharding = taken(parsed(words))
        assert sharding is not None
        shares |= set(sharding.wanted(1000))
    assert shares == set(range(1000))
