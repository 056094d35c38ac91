"""What MLflow shows of a run: its name, parameters, tags, scores, data sets and description."""

import getpass
import json
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from pydantic import ValidationError

from alpro.artifact import Record, Source, flatten
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.stages import CORPUS_STAGES, STAGES
from alpro.stages.evaluation.score_names import HEADLINES
from alpro.stages.execution.interface import Interrupted

TABLE_ROWS = 500
DIGITS = 4  # of scores: MLflow's pages show every digit that they get
# The last words of the keys of a stage that people vary. Each is a parameter of its own.
VARIED = (
    "lr",
    "batch_size",
    "steps",
    "epochs",
    "seed",
    "weight_decay",
    "warmup_ratio",
    "frames",
    "entities",
    "threshold",
)


def run_title(name: str, fingerprint: str, arguments: Mapping[str, Any]) -> str:
    """The name of a pipeline's run. Pages cut long names, so it begins with what differs between
    runs: the changes, the stage and the data; then the configuration and the fingerprint of its
    last step.

    >>> changed = {"changes": ["finetune_qa.lr=4e-4"], "stage": "", "data": "/home/me/films"}
    >>> run_title("sample", "6e0aa0", changed)
    'qa.lr=4e-4 · films · sample 6e0aa0'
    """
    changes = " ".join(short_changes(arguments["changes"]))
    data = Path(arguments["data"]).name
    mark = f"{name} {fingerprint[:6]}".strip()
    return " · ".join(part for part in (changes, arguments["stage"], data, mark) if part)


def short_changes(changes: Sequence[str]) -> list[str]:
    """Changes with the stage and the last word of their key, unless two would look alike, and paths
    with their last part.

    >>> short_changes(["finetune_retrieval.lr=1e-5", "pretrain.phases.0.steps=20"])
    ['retrieval.lr=1e-5', 'pretrain.steps=20']
    >>> short_changes(["pretrain.phases.0.steps=20", "pretrain.phases.1.steps=9"])
    ['pretrain.phases.0.steps=20', 'pretrain.phases.1.steps=9']
    >>> short_changes(["corpora.clips.data=/home/me/films/"])
    ['clips.data=films']
    """
    pairs = [change.partition("=") for change in changes]
    counts = Counter(short_key(key.strip()) for key, _, _ in pairs)

    short = []
    for written, _, value in pairs:
        key = written.strip()
        name = short_key(key)
        shown = value.strip("\"' ").rstrip("/").rpartition("/")[2]
        short.append(f"{name if counts[name] == 1 else key}={shown}")
    return short


def short_key(key: str) -> str:
    """The stage, the corpus or the encoder that has a key, and its last word. The table of runs
    shows 23 characters of a name: a stage is named without its verb, so that the value is seen.

    >>> [short_key(key) for key in ("train_prompter.lr", "model.video.depth", "pretrained")]
    ['prompter.lr', 'video.depth', 'pretrained']
    """
    words = key.split(".")
    if words[0] in STAGES:
        words[0] = words[0].rpartition("_")[2]
    # These tables have a table for each corpus and each encoder, whose name says enough.
    elif words[0] in ("corpora", "model") and len(words) > 2:
        words = words[1:]
    return words[0] if len(words) == 1 else f"{words[0]}.{words[-1]}"


def pipeline_params(settings: PipelineConfig) -> dict[str, Any]:
    """The parameters of a pipeline's run: of each stage the values that people vary (`VARIED`), and
    of each table the other values that are not the defaults, as one text.

    Their names depend on the stages, the corpora and the number of phases only. Two runs of a
    configuration thus have the same parameters, whatever each of them changes: MLflow's comparison
    shows a missing parameter as a blank, and plots it as the value of another run.
    """
    every = settings.model_dump(mode="json", exclude={"name", "resources"})
    not_default = settings.as_written(exclude_defaults=True)

    params: dict[str, Any] = {"pretrained": every.pop("pretrained") or "none"}
    for name in every.pop("corpora"):
        params[f"corpora.{name}"] = text_of(not_default["corpora"][name])

    for table, values in every.items():
        if values is None:  # a stage that is left out
            continue
        varied = varied_values(table, values)
        params |= {f"{table}.{key}": value for key, value in varied.items()}

        others = flatten(not_default.get(table, {}))
        params[table] = text_of({k: value for k, value in others.items() if k not in varied})
    return params


def varied_values(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values of a stage's table that people vary, by their keys in it; none of another table,
    or of a stage that makes data."""
    if STAGES.get(table, "data") == "data":
        return {}
    return {
        key: value
        for key, value in flatten(values).items()
        # The sizes of the model are in [model].
        if key.rpartition(".")[2] in VARIED and not key.startswith("model.")
    }


def text_of(values: Mapping[str, Any]) -> str:
    """Values as one text.

    >>> text_of({"start": "prompter", "weights": {"vtm": 2.0}})
    'start=prompter, weights.vtm=2.0'
    >>> text_of({})
    'defaults'
    """
    return ", ".join(f"{key}={value}" for key, value in flatten(values).items()) or "defaults"


def changed_params(changes: Sequence[str], params: Collection[str]) -> list[str]:
    """The names of the parameters that show changes, each once. One that does not change the
    results, such as of `resources`, is in none of them.

    >>> changes = ["evaluate.top_k=3", "pretrain.lr=1e-4", "resources.workers=2"]
    >>> changed_params(changes, ["evaluate", "pretrain", "pretrain.lr"])
    ['evaluate', 'pretrain.lr']
    """
    found = []
    for change in changes:
        key = change.partition("=")[0].strip()
        # A value that people rarely vary is in the text of its table.
        while key and key not in params:
            key = key.rpartition(".")[0]
        found.append(key)
    return [key for key in dict.fromkeys(found) if key]


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
    """The values of a stage's configuration that are not the defaults, and those that people vary;
    artifact.json has all of them."""
    config = import_module(f"alpro.stages.{record.stage}").Config
    try:
        values = config.model_validate(record.config)
    except ValidationError:  # of another version of this project
        return {record.stage: record.config}

    params = flatten(values.model_dump(mode="json", exclude_defaults=True))
    params |= varied_values(record.stage, values.model_dump(mode="json"))
    return {f"{record.stage}.{key}": value for key, value in params.items()}


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
    tags = {"host": socket.gethostname()} | commit_tags(git_commit())
    tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.name": "alpro"}

    with suppress(KeyError, OSError):  # a process whose user has no name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def commit_tags(commit: str) -> dict[str, str]:
    """A commit as a tag, and for MLflow's own column.

    >>> commit_tags("0123abc+")
    {'commit': '0123abc+', 'mlflow.source.git.commit': '0123abc'}
    """
    tags = {"commit": commit}
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
