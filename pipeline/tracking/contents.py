"""What MLflow shows of a run: its name, parameters, tags, scores, data sets and description."""

import getpass
import json
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from pydantic import ValidationError

from alpro.artifact import Record, Source
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.score_names import HEADLINES
from alpro.stages.execution.interface import Interrupted

TABLE_ROWS = 500
DIGITS = 4  # of scores: MLflow's pages show every digit that they get


def run_title(name: str, fingerprint: str, arguments: Mapping[str, Any]) -> str:
    """The name of a pipeline's run. Pages cut long names, so it begins with what differs between
    runs: the changes, the stage and the data; then the configuration and the fingerprint of its
    last step.

    >>> changed = {"changes": ["finetune_qa.lr=4e-4"], "stage": "", "data": "/home/me/films"}
    >>> run_title("sample", "6e0aa0", changed)
    'lr=4e-4 · films · sample 6e0aa0'
    """
    changes = " ".join(short_changes(arguments["changes"]))
    data = Path(arguments["data"]).name
    mark = f"{name} {fingerprint[:6]}".strip()
    return " · ".join(part for part in (changes, arguments["stage"], data, mark) if part)


def short_changes(changes: Sequence[str]) -> list[str]:
    """Changes with the last word of their key, if it says which value is meant, and paths with
    their last part.

    >>> short_changes(["pretrain.lr=1e-4", "pretrain.phases.0.steps=20"])
    ['lr=1e-4', 'steps=20']
    >>> short_changes(["pretrain.lr=1e-4", "finetune_qa.lr=2e-4"])
    ['pretrain.lr=1e-4', 'finetune_qa.lr=2e-4']
    """
    pairs = [change.partition("=") for change in changes]
    words = Counter(key.rpartition(".")[2] for key, _, _ in pairs)

    short = []
    for key, _, value in pairs:
        word = key.rpartition(".")[2]
        shown = value.strip("\"'").rstrip("/").rpartition("/")[2]
        short.append(f"{word if words[word] == 1 else key}={shown}")
    return short


def changed_keys(changes: Sequence[str]) -> list[str]:
    """The keys of changes, which are names of parameters."""
    return [change.partition("=")[0].strip() for change in changes]


def status_after(error: BaseException) -> str:
    """The status of a run that an exception ended: KILLED if somebody stopped it, else FAILED."""
    stopped = isinstance(error, KeyboardInterrupt | SystemExit | Interrupted)
    # Prefect's exceptions, by name: this folder does not import Prefect.
    stopped = stopped or type(error).__name__ in ("TerminationSignal", "Abort", "CancelledError")
    return "KILLED" if stopped else "FAILED"


def headlines(metrics: dict[str, float]) -> dict[str, float]:
    """The headline scores of an evaluation under their short names; metrics: by split and name, as
    in its record."""
    # A record's name of a score starts with the split: test/retrieval_vtc/t2v/R1.
    by_name = {name.partition("/")[2]: value for name, value in metrics.items()}
    return {short: by_name[name] for short, name in HEADLINES.items() if name in by_name}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Scores with four digits; results.json has all of them.

    >>> rounded({"QA": 91.619318181, "ece": 0.0123456})
    {'QA': 91.62, 'ece': 0.01235}
    """
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


def stage_title(record: Record) -> str:
    """The name of a stage's run: its name, and its fingerprint."""
    return f"{record.name} · {record.fingerprint[:8]}"


def params_of(record: Record) -> dict[str, Any]:
    """The values of a stage's configuration that are not the defaults; artifact.json has all of
    them."""
    config = import_module(f"alpro.stages.{record.stage}").Config
    try:
        values = config.model_validate(record.config).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:  # of another version of this project
        values = record.config
    return {record.stage: values}


def datasets_of(folder: Path, record: Record) -> list[DatasetInput]:
    """The corpora that a stage reads, or is: their names, fingerprints and folders.

    folder: of the stage's artifact, in the store that has its inputs, too.
    """
    store = folder.parent.parent
    corpora = {
        name: source for name, source in record.inputs.items() if source.stage in CORPUS_STAGES
    }

    # A corpus is its own data set.
    if record.stage in CORPUS_STAGES:
        name = record.name.partition(" ")[2] or record.name
        corpora = {name: Source(record.stage, record.fingerprint)}

    return [
        dataset(name, source.fingerprint, source.folder(store)) for name, source in corpora.items()
    ]


def dataset(name: str, fingerprint: str, folder: Path) -> DatasetInput:
    """A corpus as MLflow lists it in the column Dataset."""
    source = json.dumps({"uri": str(folder)})
    # MLflow takes at most 36 characters of a digest.
    described = Dataset(name, fingerprint[:16], source_type="local", source=source)
    return DatasetInput(described, [InputTag(MLFLOW_DATASET_CONTEXT, "corpus")])


def distinct(datasets: Iterable[DatasetInput]) -> list[DatasetInput]:
    """Each corpus once."""
    return list({(one.dataset.name, one.dataset.digest): one for one in datasets}.values())


def common_tags() -> dict[str, str]:
    """Where a run comes from: commit, machine and user, also in MLflow's own columns."""
    commit = git_commit()
    tags = {"commit": commit, "host": socket.gethostname()}
    tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.name": "alpro"}

    with suppress(KeyError, OSError):  # a process whose user has no name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    if commit != "unknown":
        # Without our mark for changed files, which no commit has.
        tags["mlflow.source.git.commit"] = commit.removesuffix("+")
    return tags


@cache
def git_commit() -> str:
    """The commit of this code, with + where files differ from it; "unknown" outside a checkout."""
    file = Path(__file__).resolve()  # alpro/pipeline is a link, and git follows none
    root = file.parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Fails where the package is installed inside a repository of the user's.
        git("ls-files", "--error-unmatch", str(file))
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and _ - . : / and spaces, 250 of them.

    >>> metric_name("test/qa/acc_what's")
    'test/qa/acc_what_s'
    """
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]


def read_table(path: Path) -> Any:
    """The first rows of a table as a data frame with plain columns."""
    import pandas as pd

    read = pd.read_json if path.suffix == ".json" else pd.read_parquet
    frame = read(path).head(TABLE_ROWS)
    for column in frame.columns:
        values = list(frame[column])
        if any(map(is_list, values)):
            frame[column] = [", ".join(map(str, value)) for value in values]
    return frame


def is_list(value: Any) -> bool:
    """Whether a cell of a table has several values."""
    return hasattr(value, "__len__") and not isinstance(value, str)
