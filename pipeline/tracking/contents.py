"""What MLflow shows of a run: its name, tags, data sets and tables."""

import getpass
import json
import re
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils import mlflow_tags

from alpro.artifact import Record, read_record
from alpro.stages import CORPUS_STAGES, STAGES
from alpro.stages.evaluation.score_names import HEADLINES

TABLE_ROWS = 500
QUOTES = "\"' "  # around values of changes
DIGEST_LENGTH = 8  # characters
FIRST_STORAGE_COLUMN = "shard"  # of index.parquet; the columns before it describe a sample


def run_title(name: str, fingerprint: str, arguments: Mapping[str, Any]) -> str:
    """Return the name of a pipeline's run.

    Pages cut long names, so it begins with what differs between runs: the changes, the stage and
    the data. The configuration and the fingerprint of the last step follow.

    >>> changed = {"changes": ["finetune_qa.lr=4e-4"], "stage": "", "data": "/home/me/films"}
    >>> run_title("sample", "6e0aa0", changed)
    'qa.lr=4e-4 · films · sample 6e0aa0'
    """
    changes = " ".join(map(shorten_change, arguments["changes"]))
    data = Path(arguments["data"]).name
    mark = f"{name} {fingerprint[:6]}".strip()
    return " · ".join(part for part in (changes, arguments["stage"], data, mark) if part)


def shorten_change(change: str) -> str:
    """Shorten a change to the stage, the corpus or the encoder that has its key, the key's last
    word, and the value, of a path its last part.

    The table of runs shows 23 characters of a name, so a stage loses its verb.

    >>> shorten_change("finetune_retrieval.phases.0.lr=1e-5")
    'retrieval.lr=1e-5'
    >>> shorten_change("corpora.clips.data=/home/me/films/"), shorten_change("pretrained='m'")
    ('clips.data=films', 'pretrained=m')
    """
    key, _, value = change.partition("=")
    words = key.strip().split(".")
    if words[0] in STAGES:
        words[0] = words[0].rpartition("_")[2]
    # These tables have a table for each corpus and each encoder, whose name says enough.
    elif words[0] in ("corpora", "model") and len(words) > 2:
        words = words[1:]

    short_key = ".".join([*words[:1], *words[1:][-1:]])
    return f"{short_key}={value.strip(QUOTES).rstrip('/').rpartition('/')[2]}"


def status_after(error: BaseException) -> str:
    """Return the status of a run that an exception ended: KILLED if it was stopped, else FAILED."""
    # What is no Exception, such as KeyboardInterrupt, stops a program.
    stopped = isinstance(error, CancelledError) or not isinstance(error, Exception)
    return "KILLED" if stopped else "FAILED"


def headlines(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the headline scores of an evaluation under their short names.

    Args:
        metrics: Metrics of its record, by split and name, such as test/retrieval_vtc/t2v/R1.
    """
    by_name = {name.partition("/")[2]: value for name, value in metrics.items()}
    return {short: by_name[name] for short, name in HEADLINES.items() if name in by_name}


def stage_title(record: Record) -> str:
    """Return the name of a stage's run."""
    return f"{record.name} · {record.fingerprint[:8]}"


def input_corpora(folder: Path, record: Record) -> list[DatasetInput]:
    """Return the corpora that a stage reads, as data sets of MLflow.

    Args:
        folder: Folder of the stage's artifact, in the store that has its inputs too.
        record: Record of the artifact, or what is known before it runs.
    """
    corpora = []
    for name, source in record.inputs.items():
        place = source.folder(folder.parents[1])
        corpus = read_record(place) if source.stage in CORPUS_STAGES else None
        if corpus:
            corpora.append(describe_corpus(name, place, corpus))
    return corpora


def own_corpus(folder: Path, record: Record) -> list[DatasetInput]:
    """Return the corpus that a finished artifact is, if it is one."""
    if record.stage not in CORPUS_STAGES:
        return []
    return [describe_corpus(record.name.partition(" ")[2] or record.name, folder, record)]


def describe_corpus(name: str, folder: Path, record: Record) -> DatasetInput:
    """Describe a corpus: its counts as the profile, the columns of its samples as the schema."""
    columns = []
    for column in pq.read_schema(folder / "index.parquet"):
        if column.name == FIRST_STORAGE_COLUMN:
            break
        columns.append({"name": column.name, "required": True, **column_type(column.type)})

    dataset = Dataset(
        name,
        record.fingerprint[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(folder)}),
        schema=json.dumps({"mlflow_colspec": columns}),
        profile=json.dumps({key: count for key, count in record.counts.items() if count}),
    )
    return DatasetInput(dataset, [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "corpus")])


def column_type(arrow: pa.DataType) -> dict[str, Any]:
    """Return an Arrow type in the form of MLflow's schemas.

    >>> column_type(pa.list_(pa.string()))
    {'type': 'array', 'items': {'type': 'string'}}
    """
    if pa.types.is_list(arrow):
        return {"type": "array", "items": column_type(arrow.value_type)}
    if pa.types.is_integer(arrow):
        return {"type": "long"}
    return {"type": "double" if pa.types.is_floating(arrow) else "string"}


def common_tags() -> dict[str, str]:
    """Return where a run comes from: commit, machine and user."""
    tags = {
        "host": socket.gethostname(),
        mlflow_tags.MLFLOW_GIT_COMMIT: git_commit(),
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        mlflow_tags.MLFLOW_SOURCE_NAME: "alpro",
    }
    with suppress(KeyError, OSError):  # the user has no name, as in some containers
        tags[mlflow_tags.MLFLOW_USER] = getpass.getuser()
    return tags


@cache
def git_commit() -> str:
    """Return the commit of this code, with + if files differ from it; "unknown" outside a
    checkout."""
    file = Path(__file__).resolve()  # alpro/pipeline is a link, and git follows none

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Fails if the package is installed inside another repository.
        git("ls-files", "--error-unmatch", str(file))
        return git("describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def metric_name(name: str) -> str:
    """Return a name that MLflow takes: letters, digits and _ - . : / and spaces, at most 250.

    >>> metric_name("test/qa/acc_what's")
    'test/qa/acc_what_s'
    """
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]


def read_table(path: Path) -> pd.DataFrame:
    """Return the first rows of a table; cells with several values become text."""
    read = pd.read_json if path.suffix == ".json" else pd.read_parquet
    return read(path).head(TABLE_ROWS).map(join_values)


def join_values(cell: Any) -> Any:
    is_list = hasattr(cell, "__len__") and not isinstance(cell, str)
    return ", ".join(map(str, cell)) if is_list else cell
