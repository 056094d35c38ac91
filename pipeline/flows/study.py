"""Studies: every variant of a configuration with every seed, and a table of their scores.

The runs are those of `alpro run`, one after another. What they share is built once, because an
artifact is found by its fingerprint; so a study that was stopped continues when it is run again.
The seeds are the outer loop: after the first, all variants can be compared.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from alpro.artifact import Record, read_record
from alpro.environment import outside_current_folder
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.log import log
from alpro.pipeline.config.command import Command
from alpro.pipeline.config.fields import error_line
from alpro.pipeline.config.load import CONFIGS, find_config, load_config, read_toml
from alpro.pipeline.config.pipeline_config import STAGE_CONFIGS
from alpro.pipeline.plan.checks import check_plan
from alpro.pipeline.plan.plan import Plan, make_plan, required
from alpro.pipeline.reports.results import (
    Rows,
    Table,
    change_text,
    metric_text,
    number_text,
    row_label,
    rows,
)
from alpro.shards.storage import absolute
from alpro.stages import STAGES
from alpro.stages.evaluation.score_names import INTERPOLATION_SHARE, STUDIED, VALIDATION_SCORES

STUDIES = CONFIGS / "studies"
SEEDED = tuple(stage for stage, config in STAGE_CONFIGS.items() if "seed" in config.model_fields)
NOTE = (
    "Means over the seeds, with Student's 95 % interval of the mean. Differences are paired by "
    "seed: the variant minus "
    "the first with the same seed. The intervals cover what a seed changes, and not the choice of "
    "test items."
)


class Study(BaseModel):
    """A study; docs/evaluate.md has its keys. The other variants are compared with the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Of the experiment in MLflow; by default the name of the file.
    name: str = Field(default="", pattern=r"^[\w-]*$")
    config: str = "sample"  # the path of a file is relative to the study file
    changes: tuple[str, ...] = Field(default=(), alias="set")  # of all variants
    # The last stage to run; by default the whole pipeline.
    until: str = Field(default="", pattern=f"^({'|'.join(STAGES)})?$")
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    # Without `render_sample`, all have one corpus.
    seed_stages: tuple[Annotated[str, Field(pattern=f"^({'|'.join(SEEDED)})$")], ...] = SEEDED
    # Of the printed table; `*` matches any characters.
    scores: tuple[str, ...] = Field(default=STUDIED, min_length=1)
    # The changes of each, by its name in the table and in MLflow.
    variants: dict[str, tuple[str, ...]] = Field(default={"base": ()}, min_length=1)


def load_study(source: str) -> Study:
    """Loads a study from a TOML file, or a shipped one by name. Raises InputError if it is
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


def members_of(study: Study, config: str, changes: tuple[str, ...], root: Path) -> list[Member]:
    """Plan all runs, seeds first.

    Args:
        changes: changes of the command line. They come after those of the study, and before those
            of a variant and its seed, which are what is compared.

    Raises:
        InputError: A variant is invalid. The message names it.
    """
    members = []
    for seed in study.seeds:
        for variant, its_changes in study.variants.items():
            own = [*study.changes, *changes, *its_changes, f'name="{study.name}"']
            try:
                # Which stages a variant has decides which of the seeds are set.
                settings = load_config(Command(config, tuple(own)))
                own += [
                    f"{stage}.seed={seed}"
                    for stage in study.seed_stages
                    if getattr(settings, stage) is not None
                ]
                plan = make_plan(Command(config, tuple(own), study.until), root)
            except InputError as error:
                raise InputError(f"variant {variant!r}: {error}") from error

            members.append(Member(variant, seed, plan))
    return members


def run_study(
    study: Study, members: list[Member], root: Path, tracking_uri: str = ""
) -> tuple[Table | None, Path, list[str]]:
    """Runs all members. Returns the table of the selected scores, None without scores, the file
    with all of them, and the titles of the runs that failed: one does not stop the others. Raises
    InputError before the first run if files are missing."""
    with outside_current_folder():
        from alpro.pipeline.flows import flow

    from alpro.pipeline.tracking.contents import status_after
    from alpro.pipeline.tracking.tracker import Tracker

    for member in members:
        check_plan(member.plan)
    tracker = Tracker.open(tracking_uri, root, study.name)

    scores: dict[str, dict[int, Rows]] = {variant: {} for variant in study.variants}
    failed: dict[str, str] = {}
    for number, member in enumerate(members, 1):
        log.info(f"{member.title} ({number} of {len(members)})")
        tags = {"study": study.name, "variant": member.variant, "seed": str(member.seed)}
        arguments = {
            "config": member.plan.command.config,
            "data": "",
            "changes": list(member.plan.command.changes),
            "stage": study.until,
        }
        try:
            folders = flow.start(
                member.plan, arguments, root, tracker, title=member.title, tags=tags
            )
        except Exception as error:
            # The study was stopped, and not only this run.
            if status_after(error) == "KILLED":
                raise
            log.warning(f"{member.title}: failed: {error}")
            failed[member.title] = str(error)
            continue

        read = [(folder, read_record(folder)) for folder in map(Path, folders.values())]
        found = [(folder, record) for folder, record in read if record]
        # Of a study that ends with a training, what each run reached on the validation split.
        scores[member.variant][member.seed] = rows(found) or validation_rows(found[-1][1])

    summaries = score_rows(scores)

    # The same file for a study that continues, another one if anything of it has changed.
    mark = digest([member.plan.steps[-1].fingerprint for member in members])[:6]
    file = root / "reports" / f"{study.name}-{mark}" / "study.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "study": study.model_dump(mode="json", by_alias=True),
        "config": members[0].plan.command.config,
    }
    write_json(file, about | {"failed": failed, "scores": summaries})

    selected = [
        row
        for row in summaries
        if any(fnmatchcase(row["score"], pattern) for pattern in study.scores)
    ]

    return study_table(study.name, selected or summaries) if summaries else None, file, list(failed)


def validation_rows(record: Record) -> Rows:
    """What a training reached on the validation split, as rows of results.json; without chance and
    interval."""
    scores = []
    shown = VALIDATION_SCORES | {INTERPOLATION_SHARE: "share of the fine-tuning"}
    for name, metric in shown.items():
        if name in record.metrics:
            is_share = name == INTERPOLATION_SHARE
            row: dict[str, Any] = {
                "name": name,
                "what": record.name,
                "direction": "",
                "metric": metric,
                "unit": "" if is_share else "%",
            }
            row |= {"higher_is_better": True, "value": record.metrics[name]}
            scores.append(row | {"items": None, "chance": None})
    return scores


def work_table(members: list[Member]) -> Table:
    """What is left to do of a study: for each run, the stages that no earlier run builds, and how
    long these take by the newest record of each stage in the workspace."""
    store = members[0].plan.store
    seconds = {record.name: record.run.get("seconds") for _, record in store.all()}
    counted: set[str] = set()
    stages: list[str] = []
    lines = []
    for member in members:
        # A stage counts for the first run that builds it.
        left = [
            step
            for step in required(member.plan.steps, store)
            if step.fingerprint not in counted and not store.find(step)
        ]
        counted |= {step.fingerprint for step in left}
        names = [step.name for step in left]
        stages += names
        lines.append([member.title, ", ".join(names) or "cached", hours_text(names, seconds)])

    lines.append(["total", f"{len(stages)} stages", hours_text(stages, seconds)])

    unknown = sorted({name for name in stages if not seconds.get(name)})
    note = (
        "Hours: by the newest record of each stage in this workspace, whatever its configuration."
    )
    note += f" No record has {', '.join(unknown)}." if unknown else ""
    return Table(f"{len(members)} runs", ["run", "stages to run", "hours"], lines, note, texts=True)


def hours_text(names: list[str], seconds: Mapping[str, float | None]) -> str:
    """How long stages take, as hours; a ? for those of which no record says it.

    >>> hours_text(["a", "b", "c"], {"a": 3600, "b": 1800})
    '1.50 + ?'
    """
    known = [value for name in names if (value := seconds.get(name))]
    parts = [f"{sum(known) / 3600:.2f}"] if known else []
    parts += ["?"] if len(known) < len(names) else []
    return " + ".join(parts)


def score_rows(scores: dict[str, dict[int, Rows]]) -> list[dict[str, Any]]:
    """A row for each score and variant, scores in the order of the results.

    `values`, `items` and `seeds` are lists in the same order; `difference` is the mean of the
    difference to the first variant over the seeds that both have. `interval` and
    `difference_interval` are half widths, None for fewer than two seeds.

    scores: rows of results.json by variant and seed.
    """
    by_score: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}  # by score, variant and seed
    for variant, runs in scores.items():
        for seed, of_run in runs.items():
            for row in of_run:
                if row["value"] is not None:
                    variants = by_score.setdefault(row["name"], {})
                    variants.setdefault(variant, {})[seed] = row

    first = next(iter(scores))
    table = []
    for name, by_variant in by_score.items():
        for variant, by_seed in by_variant.items():
            baseline = {} if variant == first else by_variant.get(first, {})
            table.append({"score": name, "variant": variant, **summary_of(by_seed, baseline)})
    return table


def summary_of(
    by_seed: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """One score of a variant over its seeds, as `score_rows` describes it. baseline: the rows of
    the first variant; empty for the first itself."""
    rows = list(by_seed.values())
    values = [row["value"] for row in rows]
    chances = [row["chance"] for row in rows if row["chance"] is not None]

    # The seeds pair the runs: what a seed changes for both cancels in the difference.
    both = sorted(baseline.keys() & by_seed.keys())
    pairs = [by_seed[seed]["value"] - baseline[seed]["value"] for seed in both]

    described = ("what", "direction", "metric", "unit", "higher_is_better")
    return {
        **{key: rows[0][key] for key in described},
        "seeds": list(by_seed),
        "values": values,
        "items": [row["items"] for row in rows],
        "mean": mean(values),
        "interval": interval(values),
        "difference": mean(pairs) if pairs else None,
        "difference_interval": interval(pairs),
        "chance": mean(chances) if chances else None,
    }


def interval(values: list[float]) -> float | None:
    """Half the width of Student's 95 % interval of the mean; None for fewer than two values.

    >>> round(interval([1.0, 2.0, 3.0]), 2)  # 4.303 x 1 / sqrt(3)
    2.48
    """
    from scipy.stats import t as student

    if len(values) < 2:
        return None

    # Student's t(0.975, n - 1) times s / sqrt(n).
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def study_table(title: str, summaries: list[dict[str, Any]]) -> Table:
    """The rows as a table to print."""
    lines = []
    for row in summaries:
        difference = row["difference"]
        lines.append(
            [
                f"{row_label(row)}, {metric_text(row)}",
                row["variant"],
                number_text(row["mean"], row["unit"]),
                half_width(row["interval"]),
                "" if difference is None else change_text(difference, None, None),
                half_width(row["difference_interval"]),
                " ".join(f"{value:.1f}" for value in row["values"]),
                number_text(row["chance"], row["unit"]),
            ]
        )

    return Table(
        title,
        ["score", "variant", "mean", "±", "difference", "±", "each seed", "chance"],
        lines,
        NOTE,
    )


def half_width(value: float | None) -> str:
    """Half an interval behind its mean; empty without one."""
    return "" if value is None else f"± {value:.1f}"
