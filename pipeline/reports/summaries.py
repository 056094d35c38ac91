"""The summaries of earlier runs, beside their pages."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alpro.files import read_json
from alpro.pipeline.plan.plan import Plan, required
from alpro.pipeline.store.artifacts import Step

FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"
MAX_EARLIER_RUNS = 8  # that a page links


def report_file(root: Path, plan: Plan) -> Path:
    """Return the page of a run of a plan in a workspace. Its summary is the .json beside it."""
    return root / "reports" / f"{plan.settings.name}-{plan.steps[-1].fingerprint[:6]}.html"


def earlier_runs(path: Path, run: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses of the pages of the last runs of the same configuration, the newest
    first, by their names."""
    links = {}
    for page, other in earlier_summaries(path.parent, run.get("name", ""), run["started"]):
        # A page of the same name is of an earlier run of the same steps: this page replaces it.
        if page.stem != path.stem:
            time = other["started"][:16].replace("T", " ")
            links[f"{time}: {other['title']} ({other['state']})"] = quote(page.name)
    return dict(list(links.items())[:MAX_EARLIER_RUNS])


def earlier_summaries(folder: Path, name: str, before: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the pages of the runs of a configuration that started before a time, with their
    summaries, the newest first."""
    found = []
    for file in folder.glob("*.json"):
        page = file.with_suffix(".html")
        with suppress(OSError, ValueError, TypeError, KeyError):  # no summary of a run
            run = read_json(file)
            if run["name"] == name and run["started"] < before and page.is_file():
                found.append((page, run))

    # Times in ISO 8601 sort as text.
    found.sort(key=lambda page_and_run: page_and_run[1]["started"], reverse=True)
    return found


def latest_summary(folder: Path, name: str, before: str) -> dict[str, Any] | None:
    """Return the summary of the last run of a configuration before a time; None without one."""
    summaries = earlier_summaries(folder, name, before)
    return summaries[0][1] if summaries else None


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
