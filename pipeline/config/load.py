"""Loads a configuration: a TOML file over its `base`, own data, and `--set` changes, as one valid
`PipelineConfig`.

Until the classes validate them, values are those of TOML: what is not a table where one is expected
is passed over here (`tables`), and reported by the classes.
"""

import os
import tomllib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from alpro.artifact import flatten
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import read_text
from alpro.log import log, warn_once
from alpro.models.initial import text_sizes, video_sizes
from alpro.pipeline.config.pipeline_config import (
    ALWAYS,
    FILES,
    FILES_OR_NAMES,
    SHARED,
    PipelineConfig,
    is_word,
)
from alpro.shards.sources.manifest import has_questions
from alpro.shards.storage import Location, absolute
from alpro.stages import TRAININGS

CONFIGS = Path(__file__).with_name("shipped")
OPTIONAL_STAGES = (
    "render_sample",
    "train_prompter",
    "pretrain",
    "finetune_retrieval",
    "finetune_qa",
)
# Stages that create models, from pre-trained encoders if they name any.
ENCODER_STAGES = ("train_prompter", "pretrain")
# The corpora that `evaluate` names, and the stages that train for them.
TASK_STAGES = {"retrieval": "finetune_retrieval", "qa": "finetune_qa"}
LENGTHS = {"steps": "epochs", "epochs": "steps"}  # of a phase
ALIASES = {"learning_rate": "lr"}  # other names of keys, which are not spelled alike

Values = dict[str, Any]


def load_config(
    source: str,
    data: str = "",
    changes: list[str] | None = None,
    asks_questions: Callable[[Location], bool] = has_questions,
) -> PipelineConfig:
    """Loads a TOML file, or a shipped configuration by name, with `--set` changes such as
    "pretrain.lr=1e-4".

    Args:
        data: a manifest or folder that replaces all corpora.
        asks_questions: whether the data has a question; by default all rows are read.

    Raises InputError with a one-line message if anything is invalid.
    """
    changes = changes or []

    path = find_config(source)
    values = read_config(path)
    if data:  # before the changes, which may name its corpus: corpora.data.size
        check_data_option(data)
        replace_corpora(values, data)

    for change in changes:
        apply_change(values, change)
    # Paths in --set are relative to the current folder.
    values = resolve_paths(without_stages(values), Path.cwd())

    if data:  # after the changes, which may leave out the task: the data is then not read
        skip_questions(values, data, asks_questions)
    # They would create the model that `pretrained` replaces.
    if values.get("pretrained"):
        values = {key: value for key, value in values.items() if key not in ENCODER_STAGES}
    drop_unused(values)
    share_tables(values, path)

    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        line = validation_line(error, PipelineConfig)
        # The message names where the value was set: in --set, or else in the file.
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        if any(set_by(change, where) for change in changes):
            raise InputError(f"--set {line}") from error
        raise InputError(f"{path}: {line}") from error


def check_data_option(data: str) -> None:
    """Raises InputError for a URL with credentials, and for what is neither a file nor a folder: a
    pipe would be read for ever."""
    refuse_credentials("corpora.data.data", data)
    file = Path(os.path.expanduser(data))  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)
    if os.path.lexists(file) and not (file.is_file() or file.is_dir()):
        raise InputError(f"--data {data}: neither a file nor a folder")


def set_by(change: str, where: str) -> bool:
    """Whether a change, KEY=VALUE, has set the value at a dotted path, or a table around it.

    >>> set_by("pretrain.lr=1", "pretrain.lr"), set_by("pretrain={}", "pretrain.lr"), set_by("pre=1", "pretrain")
    (True, True, False)
    """
    key = change.partition("=")[0].strip()
    return where == key or where.startswith(f"{key}.")


def shipped(folder: Path = CONFIGS) -> list[str]:
    """Names of the shipped configurations, or of the studies."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_config(source: str, folder: Path = Path(), shipped_in: Path = CONFIGS) -> Path:
    """A TOML file by its path in `folder`, or by its name: a shipped one, or one of the folder
    `configs`."""
    refuse_credentials("--config", source)
    path = folder / os.path.expanduser(source)  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)
    for file in (path, shipped_in / f"{source}.toml", folder / "configs" / f"{source}.toml"):
        # A folder named `sample` hides no configuration of this name.
        if file.is_file():
            return file
    raise InputError(
        f"{source}: no such file; the shipped ones are {', '.join(shipped(shipped_in))}"
    )


def read_config(path: Path, below: tuple[Path, ...] = ()) -> Values:
    """The values of a configuration file, with absolute paths, over those of its `base`."""
    log.debug(f"reading {path}")
    values = resolve_paths(read_toml(path), path.parent)
    if "base" in values:
        base = values.pop("base")
        # A base that leads back to this file would be read for ever.
        if not isinstance(base, str) or path in below:
            raise InputError(f"{path}: base must be another configuration (it is {base!r})")
        values = merged(read_config(find_config(base, path.parent), (*below, path)), values)

    return without_stages(values)


def read_toml(path: Path) -> Values:
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error

    # Of every key: the configuration is recorded in artifacts and shown in MLflow.
    for key, value in flatten(values).items():
        refuse_credentials(f"{path}: {key}", value)
    return values


def tables(values: Any, *path: str) -> Iterator[Values]:
    """The tables at a path of nested values, in which * stands for every key or index.

    >>> list(tables({"a": {"b": [{"c": 1}, 2]}, "d": 3}, "a", "b", "*"))
    [{'c': 1}]
    """
    if not path:
        if isinstance(values, dict):
            yield values
        return

    key, *rest = path
    inner: list[Any] = []
    if key == "*":
        if isinstance(values, dict):
            inner = list(values.values())
        elif isinstance(values, list):
            inner = values
    elif isinstance(values, dict):
        inner = [values.get(key)]
    for value in inner:
        yield from tables(value, *rest)


def table_of(values: Any, *path: str) -> Values:
    """The table at a path; an empty one if there is none."""
    return next(tables(values, *path), {})


def merged(values: Values, more: Values) -> Values:
    """Nested values with those of `more` added, which take precedence.

    >>> merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    """
    result = {**values, **more}
    for key in more:
        # Only tables are merged: a list of phases replaces the other list.
        if table_of(values, key) and table_of(more, key):
            result[key] = merged(values[key], more[key])
    return result


def without_stages(values: Values) -> Values:
    """The values without the optional stages that are `false`, as `--set finetune_qa=false` makes
    them.

    >>> without_stages({"pretrain": False, "finetune_qa": {"lr": 1e-4}, "name": "a"})
    {'finetune_qa': {'lr': 0.0001}, 'name': 'a'}
    """
    return {
        key: value
        for key, value in values.items()
        if value is not False or key not in OPTIONAL_STAGES
    }


def resolve_paths(values: Values, base: Path) -> Values:
    """Makes relative paths of corpora, models and other files absolute."""
    resolve(values, "pretrained", base)
    for corpus in tables(values, "corpora", "*"):
        resolve(corpus, "data", base)
        resolve(corpus, "shards", base)
        root = corpus.get("root")
        if isinstance(root, str) and root:  # maybe of another machine: links are not resolved
            corpus["root"] = os.path.normpath(base.absolute() / root)

    for files in tables(values, "corpora", "*", "annotations"):
        for split in files:
            resolve(files, split, base)

    for stage, key in FILES:
        for table in tables(values, stage):
            resolve(table, key, base)
    for stage, key in FILES_OR_NAMES:
        for table in tables(values, stage):
            name = table.get(key)
            if isinstance(name, str) and name and not is_word(stage, key, name):
                # A name on the hub looks like a path: only one that exists is one.
                path = absolute(name, base)
                table[key] = str(path) if isinstance(path, Path) and path.exists() else name
    return values


def resolve(table: Values, key: str, base: Path) -> None:
    """Makes the path, or the paths, of a key absolute; leaves out what the classes will refuse."""
    file = table.get(key)
    if isinstance(file, str) and file:
        table[key] = str(absolute(file, base))
    elif isinstance(file, list):
        table[key] = [str(absolute(one, base)) if isinstance(one, str) else one for one in file]


def replace_corpora(values: Values, data: str) -> None:
    """Replaces all corpora by one, `data`, decoded as the first that is evaluated; phases keep
    their lengths."""
    corpora = table_of(values, "corpora")
    evaluate = values.setdefault("evaluate", {})

    names = [table.get(task) for table in tables(evaluate) for task in TASK_STAGES]
    evaluated = [name for name in names if isinstance(name, str)]
    candidates = [corpus for name in (*evaluated, *corpora) for corpus in tables(corpora, name)]

    first = candidates[0] if candidates else {}

    replaced = ("manifest", "data", "shards", "kinds", "annotations", "root")
    settings = {key: value for key, value in first.items() if key not in replaced}
    values["corpora"] = {"data": {**settings, "data": str(absolute(data))}}
    # No corpus is left that needs the sample.
    values.pop("render_sample", None)

    for stage in TRAININGS:
        for phase in tables(values, stage, "phases", "*"):
            # One corpus needs no weights.
            phase.pop("weights", None)
            phase["corpora"] = ["data"]

    for table in tables(evaluate):
        for task, stage in TASK_STAGES.items():
            if stage in values or table.get(task):
                table[task] = "data"


def skip_questions(values: Values, data: str, asks_questions: Callable[[Location], bool]) -> None:
    """Leaves out question answering if the data has no questions."""
    evaluate = table_of(values, "evaluate")
    wanted = values.get("finetune_qa") is not None or evaluate.get("qa")
    # `asks_questions` may read all rows, so only if a stage wants to know.
    if not wanted or asks_questions(absolute(data)):
        return

    if values.pop("finetune_qa", None) is not None:
        warn_once(f"no questions in {data}: question answering is skipped")
    evaluate["qa"] = ""


def drop_unused(values: Values) -> None:
    """Drops corpora without data that no stage uses, as those of a `base` whose stages are left
    out."""
    evaluate = table_of(values, "evaluate")
    used: list[Any] = [evaluate.get(task) for task in TASK_STAGES]
    for stage in TRAININGS:
        for phase in tables(values, stage, "phases", "*"):
            names = phase.get("corpora")
            used += names if isinstance(names, list) else []

    corpora = table_of(values, "corpora")
    for name, corpus in list(corpora.items()):
        # What is no table stays for the classes to refuse.
        if name in used or len(corpora) == 1 or not isinstance(corpus, dict):
            continue
        if not any(corpus.get(key) for key in ("manifest", "data", "shards")):
            del corpora[name]


def share_tables(values: Values, path: Path) -> None:
    """Copies the tables of `SHARED`, which are set once, to the stages that have them; [model] with
    the sizes of encoders in local folders."""
    models: dict[str, Any] = {**with_sizes(values)}
    for table in tables(values, "train_prompter"):  # may have sizes of its own
        sizes = table.pop("model", {})
        if isinstance(sizes, dict):
            sizes = merged(models["train_prompter"], sizes)
        models["train_prompter"] = sizes

    for key, stage in SHARED:
        # A stage without a table needs one here to hold the shared ones.
        if stage in ALWAYS:
            values.setdefault(stage, {})
        for table in tables(values, stage):
            if key in table:
                raise InputError(f"{path}: {stage}.{key}: set it once, in [{key}]")
            table[key] = models[stage] if key == "model" else values.get(key, {})

    # The later stages go on with the model of pre-training, so [model] has its sizes.
    if "pretrain" in models and isinstance(values.get("model", {}), dict):
        values["model"] = models["pretrain"]


def with_sizes(values: Values) -> dict[str, Values]:
    """The sizes of the model of each stage that creates one: `[model]`, with those of a CLIP
    (`vit`) or BERT in a local folder, because others could not be loaded. Such a BERT is also the
    tokenizer, unless there is one.

    A stage that names no such folder has the sizes of the other stage.
    """
    model = table_of(values, "model")
    stages = {name: table for name in ENCODER_STAGES for table in tables(values, name)}
    models = {name: dict(model) for name in stages}

    for encoder, key, sizes_of in (("video", "vit", video_sizes), ("text", "bert", text_sizes)):
        sizes: dict[str, Values] = {}
        for name, stage in stages.items():
            source = stage.get(key)
            found = sizes_of(source) if isinstance(source, str) else None
            if found:
                sizes[name] = found
        # Encoders that are names on the hub have the sizes of the configuration.
        if not sizes:
            continue

        first = next(iter(sizes))
        for name in stages:
            of_stage = sizes.get(name, sizes[first])
            models[name][encoder] = {**table_of(model, encoder), **of_stage}
        if encoder == "text":
            for table in tables(values.setdefault("train_tokenizer", {})):
                table.setdefault("tokenizer", stages[first][key])
    return models


def apply_change(values: Values, change: str) -> None:
    """Applies "a.b=value" to nested values; the value is parsed as TOML, or else is plain text."""
    key, equals, text = change.partition("=")
    refuse_credentials(f"--set {key.strip()}", text)
    if not equals or not key.strip():
        raise InputError(f"--set {change}: write it as stage.key=value, such as pretrain.lr=1e-4")

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # Such as a path, which needs no quotes.
        value = text

    table: Any = values
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = key_in(table, parent, change)
        table = table.setdefault(inner, {}) if isinstance(table, dict) else table[inner]
    table[key_in(table, last, change)] = value

    if last in LENGTHS and isinstance(table, dict):  # one of the two replaces the other
        table.pop(LENGTHS[last], None)


def key_in(table: Any, name: str, change: str) -> Any:
    """The key of a table, or the index of a list, that one name of a change's key stands for."""
    if isinstance(table, dict):
        return name
    if not isinstance(table, list):
        raise InputError(f"--set {change}: {name!r} is not in a table or list")
    if not name.isdigit() or int(name) >= len(table):
        raise InputError(f"--set {change}: {name!r} is not an index from 0 to {len(table) - 1}")
    return int(name)


def validation_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error of a model's validation, with its place and, for an unknown key, a
    suggestion."""
    errors = error.errors()
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])

    # Pydantic begins the message of every ValueError so.
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_suggest(first['loc'], model)}"
    # A whole table would be too long for the line.
    elif "input" in first and not isinstance(first["input"], dict | BaseModel):
        message += f" (it is {first['input']!r})"

    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where + ': ' if where else ''}{message}{more}"


def _suggest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The key that is closest to an unknown one, or all keys of its table."""
    table: Any = model
    for key in loc[:-1]:
        field = getattr(table, "model_fields", {}).get(key)
        # A key that is no field, such as a corpus's name or a phase's index, stays in its class.
        if field:
            classes = (field.annotation, *_arguments(field.annotation))
            table = next((one for one in classes if hasattr(one, "model_fields")), None)

    fields = getattr(table, "model_fields", {})
    names = [field.alias or name for name, field in fields.items()]
    unknown = str(loc[-1])

    close = get_close_matches(unknown, names, 1)
    if unknown in ALIASES:
        close = [ALIASES[unknown]]

    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; the keys are {', '.join(names)}" if names else ""


def _arguments(annotation: Any) -> list[Any]:
    """The types that a type is made of, at any depth: those of `dict[str, A | None]` are str, A,
    None and their union."""
    found: list[Any] = []
    for argument in get_args(annotation):
        found += [argument, *_arguments(argument)]
    return found
