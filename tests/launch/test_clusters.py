"""The files of launch/ for clusters: what the schedulers read in them, and the variables they hand on."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lowcomm.cli.main import make_parser
from lowcomm.config.load import load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
KUBERNETES = "1.31"
SKYPILOT = Path(__file__).parent / "skypilot_task.json"
"""The schema of a task in SkyPilot 0.14.1 (`sky.utils.schemas`: task, resources; Apache-2.0)."""
USAGE = subprocess.run(
    ["bash", LAUNCH / "island.sh", "--help"], capture_output=True, text=True, check=True
).stdout
VARIABLES = {
    name
    for names in re.findall(r"^  ([A-Z_]+(?:, [A-Z_]+)?)  ", USAGE, re.MULTILINE)
    for name in names.split(", ")
}
"""Those that launch/island.sh explains."""
JOIN = "1b@/ip4/203.0.113.5/tcp/31337/p2p/12D3KooWx"


def checked_by_bash(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def check_recipe(variables: dict[str, str]) -> None:
    """What an island would be started with is a recipe that loads, with its profile."""
    load_config(ROOT / variables["RECIPE"], profile=variables["PROFILE"])


def test_island_explains_its_variables() -> None:
    assert {"NPROC", "PROFILE", "JOIN", "OUT", "NNODES", "RDZV", "MAX_RESTARTS", "SETUP"} <= VARIABLES
    text = "".join((LAUNCH / name).read_text() for name in ("island.sh", "setup.sh"))
    assert all(re.search(rf"\$\{{?{name}\b", text) for name in VARIABLES)


# -- SLURM -------------------------------------------------------------------------------------------


def sbatch_options() -> argparse.ArgumentParser:
    """Those of sbatch(1) that the file uses, with the values that they take."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name in ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("job-name", "time", "signal", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--open-mode", choices=("append", "truncate"))
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument("--requeue", action="store_true")
    return parser


def test_slurm_job_is_one_torchrun_per_node() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    checked_by_bash(text)
    header, _, script = text.partition("\nset -euo pipefail\n")
    options = [shlex.split(line)[1:] for line in header.splitlines() if line.startswith("#SBATCH ")]
    found = sbatch_options().parse_args([word for words in options for word in words])
    assert found.ntasks_per_node == 1  # torchrun starts the ranks
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", found.time)
    assert re.fullmatch(r"TERM@\d+", found.signal)
    assert "#SBATCH" not in script  # sbatch reads none after the first command
    exported = set(re.findall(r"^export ([A-Z_]+)=", script, re.MULTILINE))
    assert {"NNODES", "RDZV", "NPROC"} <= exported <= VARIABLES


def test_slurm_job_without_a_recipe_says_so() -> None:
    ran = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode != 0
    assert "expected RECIPE=recipes/NAME.toml" in ran.stderr


# -- Kubernetes --------------------------------------------------------------------------------------


def kubernetes_objects() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {manifest["kind"]: manifest for manifest in found}


@pytest.mark.parametrize("kind", ["Service", "PersistentVolumeClaim", "Job"])
def test_kubernetes_objects_fit_their_schemas(kind: str) -> None:
    kubernetes_validate.validate(kubernetes_objects()[kind], KUBERNETES, strict=True)


def test_kubernetes_pods_start_the_island_of_the_config_map() -> None:
    text, objects = (LAUNCH / "kubernetes.yaml").read_text(), kubernetes_objects()
    job = objects["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    made = {
        name: value.strip("'") for name, value in re.findall(r"--from-literal=([A-Z_]+)=('[^']*'|\S+)", text)
    }
    given = {item["name"]: item["value"] for item in container["env"]}
    assert made.keys() - {"RECIPE"} <= VARIABLES
    assert given.keys() <= VARIABLES
    check_recipe(made)
    # what kubectl renders of the command: $(NAME) is replaced by the container's environment
    command = [
        re.sub(r"\$\((\w+)\)", lambda found: {**made, **given}[found[1]], word)
        for word in container["command"]
    ]
    assert command == ["bash", "launch/island.sh", "recipes/1b.toml"]
    assert container["envFrom"][0]["configMapRef"]["name"] in re.findall(r"create configmap (\S+)", text)
    assert given["NPROC"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(given["NNODES"]) == job["completions"] == job["parallelism"]
    host, _, service = given["RDZV"].partition(":")[0].partition(".")
    assert host == f"{objects['Job']['metadata']['name']}-0"
    assert service == objects["Service"]["metadata"]["name"] == pod["subdomain"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}


# -- SkyPilot ----------------------------------------------------------------------------------------


def test_skypilot_task_fits_its_schema() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    jsonschema.validate(task, json.loads(SKYPILOT.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "num_node": 2}, json.loads(SKYPILOT.read_text()))
    checked_by_bash(task["setup"])
    checked_by_bash(task["run"])
    assert task["envs"].keys() - {"RECIPE"} <= VARIABLES
    assert set(re.findall(r"\b([A-Z_]+)=", task["run"])) <= VARIABLES
    assert task["envs"]["PORT"] in task["resources"]["ports"]
    check_recipe(task["envs"])


# -- torchrun ----------------------------------------------------------------------------------------


def test_a_wrong_setting_is_said_once_and_starts_no_rank(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["bash", "launch/island.sh", "recipes/quickstart.toml", "--set", "island.engin=ddp"],
        cwd=ROOT, capture_output=True, text=True,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "SETUP": "off", "NPROC": "2", "OUT": str(tmp_path / "run"),
        },
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr == "lowcomm: error: --set: island.engin: unknown key; did you mean island.engine?\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "torchrun"),
    [
        ({}, None),
        (
            {"NPROC": "8", "PROFILE": "8xa100-fsdp2", "JOIN": JOIN},
            "--nproc-per-node 8 --max-restarts 3 --standalone --local-addr 127.0.0.1",
        ),
        (
            {
                "NNODES": "2",
                "RDZV": "node1:29500",
                "SLURM_NODEID": "1",
                "PORT": "4000",
                "PUBLIC_IP": "203.0.113.9",
            },
            "--nproc-per-node 1 --max-restarts 3 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500 "
            "--rdzv-id lowcomm --rdzv-conf is_host=0",
        ),
    ],
    ids=["one-rank", "one-node", "second-of-two-nodes"],
)
def test_what_an_island_is_started_with(
    tmp_path: Path, variables: dict[str, str], torchrun: str | None
) -> None:
    """The rendered command line: `torchrun` and `lowcomm` on the PATH only say how they were called."""
    for name in ("torchrun", "lowcomm"):
        (tmp_path / name).write_text('#!/bin/bash\nprintf "%s\\0" "$(basename "$0")" "$@"\n')
        (tmp_path / name).chmod(0o755)
    ran = subprocess.run(
        ["bash", "launch/island.sh", "recipes/1b.toml", "--set", "train.threads=2"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{os.defpath}", "SETUP": "off", **variables},
    )  # fmt: skip
    words = ran.stdout.split("\0")[:-1]
    at = words.index("train") - 1
    assert words[:at] == (["torchrun", *torchrun.split(), "-m"] if torchrun else [])
    args = make_parser().parse_args(words[at + 1 :])
    assert (args.command, str(args.recipe), args.out) == ("train", "recipes/1b.toml", "runs/1b")
    assert args.join == ([variables["JOIN"]] if "JOIN" in variables else [])
    config = load_config(ROOT / args.recipe, args.overrides, profile=args.profile)
    assert config.train.threads == 2
    if "PORT" in variables:
        assert config.exchange.listen[0] == "/ip4/0.0.0.0/tcp/4000"
        assert config.exchange.announce[1] == "/ip4/203.0.113.9/udp/4000/quic-v1"
