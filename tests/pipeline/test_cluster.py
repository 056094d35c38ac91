"""docs/cluster: the files for Slurm agree with the code and contain no secret; tools accept them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from alpro.credentials import has_credentials
from alpro.pipeline.execution.launch import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "docs" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


def test_every_variable_is_read_and_no_secret_is_in_a_file():
    scripts = "".join(path.read_text() for path in SCRIPTS)
    used = {name for name in re.findall(r"\$\{?([A-Z][A-Z_]+)", scripts) if not name.startswith("SLURM_")}
    assert used == {"PREFECT_API_URL", "ALPRO_WORKSPACE"}
    assert not any(map(has_credentials, scripts.split()))
    assert not re.search(r"\b(password|token|api_key)\s*[=:]", scripts, re.IGNORECASE)


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_jobs_have_time_for_a_checkpoint_are_queued_again_and_print_their_usage(script):
    text = script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "usage: ")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    shell, seconds = options["signal"].split("@")
    assert shell == "B:TERM"
    assert int(seconds) > GRACE_SECONDS + 20
    assert "requeue" in options
    assert 'scontrol requeue "$SLURM_JOB_ID"' in text
    assert text.index("#SBATCH --requeue") < text.index("set -u")  # Slurm reads options up to the first command
    for module in re.findall(r"-m (alpro\.[\w.]+)", text):
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file()


def test_prefect_accepts_the_automations():
    """Each is about runs of the flow `alpro` that send none of the expected events."""
    from prefect.events.schemas.automations import AutomationCore

    automations = yaml.safe_load((CLUSTER / "automation.yaml").read_text())["automations"]
    triggers = [AutomationCore.model_validate(one).trigger for one in automations]
    events = ["prefect.flow-run.heartbeat", "prefect.flow-run.Pending"]
    assert [trigger.after & set(events) for trigger in triggers] == [{event} for event in events]
    for trigger in triggers:
        assert (trigger.posture.value, trigger.within.total_seconds()) == ("Proactive", 900)
        assert trigger.match_related["prefect.resource.name"] == ["alpro"]
