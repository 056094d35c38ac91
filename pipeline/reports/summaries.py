"""The summaries of earlier runs, beside their pages."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.pipeline.plan.plan import Plan, required
from alpro.pipeline.store.artifacts import Step

FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"


def report_file(root: Path, plan: Plan) -> Path:
    """Return the page of a run of a plan in a workspace. Its summary is the .json beside it."""
    return root / "reports" / f"{plan.settings.name}-{plan.steps[-1].fingerprint[:6]}.html"


def latest_summary(folder: Path, name: str, before: str) -> dict[str, Any] | None:
    """Return the summary of the last run of a configuration before a time; None without one."""
    runs = []
    for file in folder.glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # no summary of a run
            run = read_json(file)
            if run["name"] == name and run["started"] < before:
                runs.append(run)
    # Times in ISO 8601 sort as text.
    return max(runs, key=lambda run: run["started"], default=None)


def finished_steps(plan: Plan, report: Path) -> list[Step]:
    """Return the steps of a run that has nothing to do: every artifact is in the workspace, which
    has an MLflow store, and the last run of these steps did not fail or stop. Empty if anything is
    left to do.

    Args:
        report: The file of `report_file`.
    """
    wanted = required(plan.steps, plan.store)
    if not (report.parents[1] / "mlflow.db").is_file():
        return []

    with suppress(OSError, ValueError, TypeError, KeyError):  # no summary
        if read_json(report.with_suffix(".json"))["state"] != FINISHED:
            return []
    return wanted if all(map(plan.store.find, wanted)) else []
