"""What MLflow shows of a run: its name, tags, data sets and tables."""

import json
import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import CancelledError
from functools import cache
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils import mlflow_tags

from alpro.artifact import Record, read_record
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.score_names import HEADLINES

DIGEST_LENGTH = 8  # characters


def status_after(error: BaseException) -> str:
    """Return the status of a run that an exception ended: KILLED if it was stopped, else FAILED."""
    # KeyboardInterrupt and SystemExit are no Exceptions.
    stopped = isinstance(error, CancelledError) or not isinstance(error, Exception)
    return "KILLED" if stopped else "FAILED"


def select_headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the headline scores of an evaluation under their short names.

    Args:
        metrics: Metrics of its record, by split and name, such as test/retrieval_vtc/t2v/R1.
    """
    by_name = {name.partition("/")[2]: value for name, value in metrics.items()}
    return {
        short: by_name[name] for short, name in HEADLINES.items() if name in by_name
    }


def stage_title(record: Record) -> str:
    """Return the name of a stage's run."""
    return f"{record.name} · {record.fingerprint[:8]}"


def describe_corpora(folder: Path, record: Record) -> list[DatasetInput]:
    """Return the corpora that a stage reads, or is, as data sets of MLflow: their counts are the profile.

    Args:
        folder: Folder of the stage's artifact, in the store that has its inputs too.
        record: Record of the artifact, or what is known before it runs.
    """
    corpora = {
        name: source.folder(folder.parents[1])
        for name, source in record.inputs.items()
        if source.stage in CORPUS_STAGES
    }
    if record.stage in CORPUS_STAGES:
        corpora[record.name.partition(" ")[2] or record.name] = folder

    described = []
    for name, place in corpora.items():
        corpus = read_record(place)
        if corpus is None:
            continue
        dataset = Dataset(
            name,
            corpus.fingerprint[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": str(place)}),
            profile=json.dumps(corpus.counts),
        )
        tag = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "corpus")
        described.append(DatasetInput(dataset, [tag]))
    return described


@cache
def git_commit() -> str:
    """Return the commit of this code, with -dirty if files differ from it; "unknown" outside a
    checkout."""
    # alpro/pipeline is a link, which git does not follow.
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # This fails if the package is installed inside another repository.
        git("ls-files", "--error-unmatch", str(file))
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def clean_metric_name(name: str) -> str:
    """Return a name that MLflow takes: letters, digits and _ - . : / and spaces, at most 250.

    >>> clean_metric_name("test/qa/acc_what's")
    'test/qa/acc_what_s'
    """
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]
