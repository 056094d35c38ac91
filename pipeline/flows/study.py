"""Studies: every variant of a configuration with every seed, and a table of their scores.

Its runs are the same as by `alpro run`, one after another. What they share is built once, because an
artifact is found by its fingerprint, so a study that was stopped continues when it is run again.
The seeds are the outer loop: after the first one, all variants can be compared.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from alpro.environment import outside_current_folder
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.log import log
from alpro.pipeline.config.command import STUDIES, Command, find_config, read_toml
from alpro.pipeline.config.load import error_line, read_settings
from alpro.pipeline.plan.checks import check_plan, fetch_models
from alpro.pipeline.plan.plan import Plan, make_plan
from alpro.pipeline.reports.results import (
    Rows,
    Table,
    metric_text,
    number_text,
    row_label,
    rows,
)
from alpro.shards.storage import absolute
from alpro.stages.evaluation.score_names import STUDIED, full_name

NOTE = (
    "Means over the seeds, with Student's 95 % interval of the mean. Differences are paired by "
    "seed: the variant minus the first one with the same seed. The intervals cover what a seed "
    "changes, not the choice of test items."
)


class Study(BaseModel, frozen=True, extra="forbid"):
    """A study; docs/evaluate.md has its keys. The other variants are compared with the first."""

    # Name of the experiment in MLflow; by default the name of the file.
    name: str = Field(default="", pattern=r"^[\w-]*$")
    config: str = "sample"  # the path of a file is relative to the study file
    set: tuple[str, ...] = ()  # changes of all variants
    # The last stage to run; by default the whole pipeline.
    until: str = ""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    # Columns of the printed table; `*` matches any characters.
    scores: tuple[str, ...] = Field(default=STUDIED, min_length=1)
    # The changes of each, by its name in the table and in MLflow.
    variants: dict[str, tuple[str, ...]] = Field(default={"base": ()}, min_length=1)


def load_study(source: str) -> Study:
    """Load a study from a TOML file, or a shipped one by name. Raises InputError if it is
    invalid."""
    path = find_config(source, shipped_in=STUDIES)
    values = read_toml(path)
    if isinstance(config := values.get("config"), str) and config.endswith(".toml"):
        values["config"] = str(absolute(config, path.parent))

    try:
        return Study.model_validate({"name": path.stem} | values)
    except ValidationError as error:
        raise InputError(f"{path}: {error_line(error, Study)}") from error


class Member(NamedTuple):
    """One run of a study: a variant with a seed, and its plan."""

    variant: str
    seed: int
    plan: Plan

    @property
    def title(self) -> str:
        return f"{self.variant} · seed {self.seed}"


def plan_members(
    study: Study, config: str, changes: tuple[str, ...], root: Path
) -> list[Member]:
    """Plan all runs of a study, seeds first.

    Args:
        changes: changes of the command line. They override the study's changes; the variant's
            changes and its seed, which are compared, override them.

    Raises:
        InputError: If a variant is invalid. The message names it.
    """
    members = []
    for seed in study.seeds:
        for variant, variant_changes in study.variants.items():
            every = (*study.set, *changes, *variant_changes, f'name="{study.name}"')
            try:
                # Only the seeds of stages that a variant has are set.
                seeds = [
                    f"{name}.seed={seed}"
                    for name, table in read_settings(Command(config, every))
                    if hasattr(table, "seed")
                ]
                plan = make_plan(Command(config, (*every, *seeds), study.until), root)
            except InputError as error:
                raise InputError(f"variant {variant!r}: {error}") from error

            members.append(Member(variant, seed, plan))
    return members


def run_study(
    study: Study, members: list[Member], root: Path, tracking_uri: str = ""
) -> tuple[list[Table], Path, list[str]]:
    """Run all members of a study; one that fails does not stop the others.

    Returns:
        The table of the selected scores, if there are any; the file with all scores; and the titles
        of the runs that failed.

    Raises:
        InputError: If files are missing. Raised before the first run.
    """
    with outside_current_folder():
        from alpro.pipeline.flows import flow

    from alpro.pipeline.tracking.tracker import Tracker

    for member in members:
        check_plan(member.plan)
        fetch_models(member.plan)
    tracker = Tracker.open(tracking_uri, root, study.name)

    scores: Rows = []
    failed: dict[str, str] = {}
    for number, member in enumerate(members, 1):
        log.info(f"{member.title} ({number} of {len(members)})")
        labels = {"variant": member.variant, "seed": member.seed}
        tags = {"study": study.name, **{key: str(one) for key, one in labels.items()}}
        try:
            # A copy, because the members before this one have built some of its steps.
            plan = replace(member.plan)
            artifacts = flow.start(plan, tracker, title=member.title, tags=tags)
        except Exception as error:  # not Ctrl-C and SIGTERM: they end the study
            log.warning(f"{member.title}: failed: {error}")
            failed[member.title] = str(error)
            continue
        scores += [row | labels for row in rows(artifacts)]

    summaries = summarize(scores, list(study.variants))
    # The same file for a study that continues, another one if anything of it has changed.
    mark = digest([member.plan.steps[-1].fingerprint for member in members])[:6]
    file = root / "reports" / f"{study.name}-{mark}" / "study.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "study": study.model_dump(mode="json"),
        "config": members[0].plan.command.config,
        "failed": failed,
        "scores": summaries,
    }
    write_json(file, content)

    selected = []
    for row in summaries:
        if any(fnmatchcase(row["score"], pattern) for pattern in study.scores):
            selected.append(row)
    shown = selected or summaries
    tables = [make_table(study.name, shown)] if shown else []
    return tables, file, list(failed)


def summarize(scores: Rows, variants: list[str]) -> Rows:
    """Return a row for each score and variant, scores in the order of the results.

    `values`, `items` and `seeds` are lists in the same order; `difference` is the mean of the
    difference to the first variant over the seeds that both have. `interval` and
    `difference_interval` are half widths. What is missing is None.

    Args:
        scores: rows of results.json, each with its variant and seed.
        variants: their names in order.
    """
    # Rows by seed, of each score and variant.
    groups: defaultdict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for row in scores:
        if row["value"] is not None:
            groups[full_name(row), row["variant"]][row["seed"]] = row

    summaries = []
    names = dict.fromkeys(name for name, _ in groups)
    for name, variant in product(names, variants):
        by_seed = groups[name, variant]
        if not by_seed:
            continue
        # The seeds pair the runs: what a seed changes for both cancels in the difference.
        first = groups[name, variants[0]] if variant != variants[0] else {}
        differences = [
            row["value"] - first[seed]["value"]
            for seed, row in by_seed.items()
            if seed in first
        ]
        selected = [*by_seed.values()]
        values = [row["value"] for row in selected]
        summary = {
            "score": name,
            "label": f"{row_label(selected[0])}, {metric_text(selected[0])}",
            "unit": selected[0]["unit"],
            "variant": variant,
            "seeds": [*by_seed],
            "values": values,
            "items": [row["items"] for row in selected],
            "mean": mean(values),
            "interval": interval(values),
            "chance": mean([row["chance"] for row in selected]),
            "difference": mean(differences),
            "difference_interval": interval(differences),
        }
        summaries.append(summary)
    return summaries


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of values; None without any."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def interval(values: Sequence[float]) -> float | None:
    """Return half the width of Student's 95 % interval of the mean; None for fewer than two
    values."""
    from scipy import stats

    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def make_table(title: str, summaries: Rows) -> Table:
    """Return the summaries as a table to print."""
    header = ["score", "variant", "mean", "difference", "each seed", "chance"]
    lines = []
    for row in summaries:
        mean_text = number_text(row["mean"], row["unit"])
        difference = "" if row["difference"] is None else f"{row['difference']:+.1f}"
        line = [
            row["label"],
            row["variant"],
            with_interval(mean_text, row["interval"]),
            with_interval(difference, row["difference_interval"]),
            " ".join(f"{value:.1f}" for value in row["values"]),
            number_text(row["chance"], row["unit"]),
        ]
        lines.append(line)
    return Table(title, header, lines)


def with_interval(text: str, half_width: float | None) -> str:
    return text if half_width is None else f"{text} ± {half_width:.1f}"
