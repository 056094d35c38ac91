"""What MLflow shows of a run: its name, tags, data sets and tables."""

import json
import re
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput

from alpro.artifact import Record, read_record
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.score_names import HEADLINES, VALIDATION_SCORES


def status_after(error: BaseException) -> str:
    """Return the status of a run that an exception ended: KILLED if it was stopped, else FAILED."""
    # KeyboardInterrupt and SystemExit are no Exceptions.
    stopped = isinstance(error, CancelledError) or not isinstance(error, Exception)
    return "KILLED" if stopped else "FAILED"


def select_headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the headline scores of an evaluation under their short names, and what a training
    reaches on the validation split.

    Args:
        metrics: Metrics of a record; of an evaluation by split and name, such as
            test/fine-tuned/similarity/t2v/R1.
    """
    by_name = {name.partition("/")[2]: value for name, value in metrics.items()}
    scores = {
        short: by_name[name] for short, name in HEADLINES.items() if name in by_name
    }
    return scores | {key: metrics[key] for key in VALIDATION_SCORES if key in metrics}


def stage_title(record: Record) -> str:
    """Return the name of a stage's run."""
    return f"{record.name} · {record.fingerprint[:8]}"


def describe_corpora(folder: Path, record: Record) -> list[DatasetInput]:
    """Return the corpora that a stage reads, or is, as data sets of MLflow: their counts are the profile.

    Args:
        folder: Folder of the stage's artifact, in the store that has its inputs too.
        record: Record of the artifact, or what is known before it runs.
    """
    described = []
    inputs = [source.folder(folder.parents[1]) for source in record.inputs.values()]
    for place in [*inputs, folder]:
        corpus = read_record(place)
        if corpus and corpus.stage in CORPUS_STAGES:
            dataset = Dataset(
                corpus.name.partition(" ")[2],
                corpus.fingerprint[:8],
                source_type="local",
                source=json.dumps({"uri": str(place)}),
                profile=json.dumps(corpus.counts),
            )
            described.append(DatasetInput(dataset, tags=[]))
    return described


def clean_metric_name(name: str) -> str:
    """Return a name that MLflow takes: letters, digits and _ - . : / and spaces, at most 250.

    >>> clean_metric_name("test/qa/acc_what's")
    'test/qa/acc_what_s'
    """
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]
