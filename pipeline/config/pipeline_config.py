"""The configuration of a pipeline: a TOML file and `--set` changes, validated into one frozen object."""

import errno
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.log import log
from alpro.models.alpro import ModelConfig
from alpro.models.templates import Templates
from alpro.models.word_pieces import padded
from alpro.pipeline.config.changes import ENCODER_STAGES, apply_change, with_sizes, without_stages
from alpro.pipeline.config.errors import one_line
from alpro.shards.sources.annotations import keyed
from alpro.shards.sources.manifest import has_questions
from alpro.shards.storage import Location, absolute
from alpro.stages import INPUTS, STAGES, TRAININGS
from alpro.stages.build_vocabulary import Config as BuildVocabulary
from alpro.stages.cache_prompts import Config as CachePrompts
from alpro.stages.decode_videos import Config as DecodeVideos
from alpro.stages.evaluate import Config as Evaluate
from alpro.stages.execution.interface import FILE, FILE_OR_NAME, Resources, StageConfig
from alpro.stages.finetune_qa import Config as FinetuneQa
from alpro.stages.finetune_retrieval import Config as FinetuneRetrieval
from alpro.stages.pretrain import Config as Pretrain
from alpro.stages.render_sample import Config as RenderSample
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.train_tokenizer import Config as TrainTokenizer
from alpro.stages.training.config import TrainingConfig

CONFIGS = Path(__file__).with_name("shipped")
AnnotationFile = Literal["train", "validation", "test", "texts"]


class Corpus(DecodeVideos):
    """A corpus: where its videos are, and how they are decoded. Set exactly one of `manifest` (of the rendered
    sample), `data` and `shards`."""

    data: str = Field(
        "",
        description="a manifest file or a folder of videos, or a URL; relative to the configuration's file, in --set "
        "to the current folder",
    )
    shards: str = Field(
        "",
        description="existing shards instead of videos: a folder or URL with *.tar files, relative like `data`. They "
        "are used unchanged; of the other keys, only `kinds` and `max_reject_share` apply",
    )
    annotations: dict[AnnotationFile, str | tuple[str, ...]] = Field(
        {},
        description="annotation files of the videos in `data`, by split: `train`, `validation`, `test`; and `texts`, "
        "the file with the texts if the others only list videos. A list of files for a split joins them by video, such "
        "as the captions and the questions of MSRVTT",
    )
    root: str = Field(
        "",
        description="folder that the names in `annotations` are relative to, if it is not `data`; for absolute paths "
        "of another machine, the folder in them that corresponds to `data`",
    )

    @property
    def decoding(self) -> DecodeVideos:
        """The configuration of the stage that decodes this corpus."""
        return DecodeVideos.model_validate(self.model_dump(exclude={"data", "shards", "annotations", "root"}))

    @property
    def names_root(self) -> Path | None:
        """The folder that the names in the annotation files are relative to, if it is not the data."""
        return Path(self.root) if self.root else None

    @property
    def annotation_files(self) -> dict[str, Path]:
        """The annotation files by split; further files of a split have keys of their own."""
        return keyed({split: [file] if isinstance(file, str) else file for split, file in self.annotations.items()})


class PipelineConfig(BaseModel):
    """What a pipeline computes, and the resources it may use, which do not change the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1, pattern=r"^[\w-]+$", description="name of the pipeline, and of its experiment in MLflow"
    )
    pretrained: str = Field(
        "",
        description="a model folder to start from, instead of training a prompter and pre-training; relative like "
        "`corpora.NAME.data`",
    )
    render_sample: RenderSample | None = Field(
        None, description="the sample corpus; without this table, no corpus is rendered"
    )
    corpora: dict[str, Corpus] = Field(min_length=1, description="the corpora by name")
    model: ModelConfig = Field(ModelConfig(), description="sizes of the prompter and of ALPRO")
    templates: Templates = Field(Templates(), description="the prompts, or a file of them")
    train_tokenizer: TrainTokenizer = TrainTokenizer()
    build_vocabulary: BuildVocabulary = BuildVocabulary()
    train_prompter: TrainPrompter | None = None
    cache_prompts: CachePrompts = CachePrompts()
    pretrain: Pretrain | None = None
    finetune_retrieval: FinetuneRetrieval | None = None
    finetune_qa: FinetuneQa | None = None
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _one_start(self) -> "PipelineConfig":
        clip = self.cache_prompts.prompter
        if self.pretrained and clip:
            raise ValueError("set pretrained, or cache_prompts.prompter, not both")
        if not self.pretrained and not ((clip or self.train_prompter) and self.pretrain):
            prompter = "[train_prompter] or cache_prompts.prompter"
            raise ValueError(f"set {prompter}, and [pretrain]; or pretrained: the model folder to start from")
        if clip and self.pretrain and self.pretrain.start == "prompter":
            raise ValueError(
                f"pretrain.start: no prompter is trained with cache_prompts.prompter = {clip!r}; set it to scratch"
            )
        towers = self.train_prompter.clip if self.train_prompter else ""
        if towers and self.pretrain and self.pretrain.start == "prompter":
            raise ValueError(f"pretrain.start: the prompter has the towers of {towers!r}, not ours; set it to scratch")
        return self

    @model_validator(mode="after")
    def _encoders_agree(self) -> "PipelineConfig":
        teacher, student = self.train_prompter, self.pretrain
        if not (teacher and student) or self.cache_prompts.prompter or teacher.clip or teacher.model == student.model:
            return self
        if student.start == "prompter":
            raise ValueError(
                "pretrain.start = prompter copies both encoders, but train_prompter and pretrain have different ones: "
                "name the same vit and bert in both, without [train_prompter.model], or start from scratch"
            )
        for key in ("patch_size", "image_size", "frames"):
            sizes = [getattr(stage.model.video, key) for stage in (teacher, student)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"video.{key} of the prompter is {sizes[0]}, that of pretrain {sizes[1]}: it labels crops of the "
                    "same frames, in the same patches; make them equal (vit, or [train_prompter.model])"
                )
        return self

    @model_validator(mode="after")
    def _texts_fit(self) -> "PipelineConfig":
        for stage, training in self.trainings().items():
            longest = getattr(training, "model", self.model).text.max_length
            if not self.pretrained and padded(training.max_text_tokens) > longest:
                raise ValueError(
                    f"{stage}.max_text_tokens {training.max_text_tokens}, padded to "
                    f"{padded(training.max_text_tokens)}, is more than model.text.max_length {longest}"
                )
        return self

    @model_validator(mode="after")
    def _known_corpora(self) -> "PipelineConfig":
        for name, corpus in self.corpora.items():
            if name in INPUTS:
                raise ValueError(f"corpora.{name}: this is the name of an input of the stages; choose another")
            if sum(map(bool, (corpus.manifest, corpus.data, corpus.shards))) != 1:
                raise ValueError(
                    f"corpora.{name}: set one of data or shards (your own; or --data), or manifest (in the sample)"
                )
            extra = corpus.model_fields_set - {"manifest", "data", "shards", "kinds", "max_reject_share"}
            if corpus.shards and extra:
                raise ValueError(f"corpora.{name}.{min(extra)}: shards are used unchanged; remove this key")
            for key in ("data", "shards"):
                refuse_credentials(f"corpora.{name}.{key}", getattr(corpus, key))
            if corpus.root and not corpus.annotations:
                raise ValueError(f"corpora.{name}.root: it is only used with annotations; remove this key")
            if corpus.manifest and self.render_sample is None:
                raise ValueError(f"corpora.{name}.manifest needs [render_sample]")
        used = {(f"{stage}.phases", name) for stage, config in self.trainings().items() for name in config.corpora}
        used |= {(f"evaluate.{key}", name) for key in ("retrieval", "qa") if (name := getattr(self.evaluate, key))}
        for where, name in sorted(used):
            if name not in self.corpora:
                raise ValueError(f"{where}: no corpus {name!r}; the corpora are {', '.join(self.corpora)}")
        return self

    def trainings(self) -> dict[str, TrainingConfig]:
        """The training stages that this pipeline has, by name."""
        configs = {stage: getattr(self, stage) for stage in TRAININGS}
        return {stage: config for stage, config in configs.items() if config is not None}


# The class of each stage's table. decode_videos and index_shards are configured by [corpora.NAME], zero_shot by
# [evaluate].
STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    name: next(kind for kind in (*get_args(field.annotation), field.annotation) if isinstance(kind, type))
    for name, field in PipelineConfig.model_fields.items()
    if name in STAGES
}
# Stages that work without a table.
ALWAYS = [stage for stage in STAGE_CONFIGS if PipelineConfig.model_fields[stage].default is not None]
# Top-level tables that are part of the configuration of these stages.
SHARED = [
    (key, stage)
    for key in ("model", "templates")
    for stage, config in STAGE_CONFIGS.items()
    if key in config.model_fields
]


def keys_of(path: JsonDict) -> list[tuple[str, str]]:
    """The keys that name a file, each with its stage. path: FILE, or FILE_OR_NAME."""
    return [
        (stage, key)
        for stage, config in STAGE_CONFIGS.items()
        for key, field in config.model_fields.items()
        if isinstance(extra := field.json_schema_extra, dict) and extra.get("path") == path["path"]
    ]


FILES, FILES_OR_NAMES = keys_of(FILE), keys_of(FILE_OR_NAME)


def is_word(stage: str, key: str, value: str) -> bool:
    """Whether the value of a key is a word that is never a path, also where a file has its name."""
    extra = STAGE_CONFIGS[stage].model_fields[key].json_schema_extra
    return isinstance(extra, dict) and value in cast(list[str], extra.get("words", []))


def load_config(
    source: str,
    data: str = "",
    changes: list[str] | None = None,
    asks_questions: Callable[[Location], bool] = has_questions,
) -> PipelineConfig:
    """Loads a TOML file, or a shipped configuration by name, with `--set` changes such as "pretrain.lr=1e-4".

    data: a manifest or folder that replaces all corpora. asks_questions: whether it has a question; by default all rows
    are read. Raises InputError with a one-line message if anything is invalid.
    """
    changes, path = changes or [], find_config(source)
    values = read_config(path)
    if data:  # before the changes, which may name its corpus: corpora.data.size
        refuse_credentials("corpora.data.data", data)
        refuse_special(data)
        values = with_data(values, data)
    for change in changes:
        apply_change(values, change)
        values = without_stages(values)
        check_tables(values, f"--set {change}")
    # After the changes, which may leave out the task: the data is then not read.
    has_task = values.get("finetune_qa") is not None or dict_of(values.get("evaluate")).get("qa")
    if data and has_task and not asks_questions(absolute(data)):  # question answering is then skipped
        values.pop("finetune_qa", None)
        dict_of(values.get("evaluate")).update(qa="")
    values = resolve_data(values, Path.cwd())  # paths in --set are relative to the current folder
    if isinstance(values.get("templates"), str):  # a file, by a path that is absolute now
        values["templates"] = read_toml(Path(values["templates"]))
    if values.get("pretrained"):
        values = {key: value for key, value in values.items() if key not in ENCODER_STAGES}
    drop_unused(values)
    models = with_sizes(values)
    if "train_prompter" in models:
        models["train_prompter"] = merged(models["train_prompter"], values["train_prompter"].pop("model", {}))
    for key, stage in SHARED:
        if key in dict_of(values.get(stage)):
            raise InputError(f"{path}: {stage}.{key}: set it once, in [{key}]")
        if isinstance(values.get(stage), dict) or stage in ALWAYS:
            values.setdefault(stage, {})[key] = models[stage] if key == "model" else values.get(key, {})
    values |= {"model": models["pretrain"]} if "pretrain" in models else {}
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        message = one_line(error, PipelineConfig)
        place = message.partition(":")[0]
        causes = (change for change in changes if _overlaps(place, change.partition("=")[0].strip()))
        raise InputError(f"{next((f'--set {change}' for change in causes), path)}: {message}") from error


def changed(changes: list[str]) -> dict[str, Any]:
    """The values that `--set` changes set, without all others.

    >>> changed(["pretrain.lr=1", "pretrain.phases.0.steps=5"])
    {'pretrain': {'lr': 1, 'phases': {'0': {'steps': 5}}}}
    """
    values: dict[str, Any] = {}
    for change in changes:
        apply_change(values, change)
    return values


def _overlaps(place: str, key: str) -> bool:
    """Whether the place of an error is inside the value that a key sets, or contains it."""
    return f"{place}.".startswith(f"{key}.") or f"{key}.".startswith(f"{place}.")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error


def check_tables(values: dict[str, Any], source: Path | str) -> None:
    """Raises InputError, which names the source, if a required table is not a table. The classes check the rest."""
    tables = {name: values.get(name, {}) for name in ("corpora", "model", *STAGE_CONFIGS)}
    tables["train_prompter.model"] = dict_of(tables["train_prompter"]).get("model", {})
    tables |= {f"corpora.{name}": corpus for name, corpus in dict_of(tables["corpora"]).items()}
    for stage in STAGE_CONFIGS:
        phases = dict_of(tables[stage]).get("phases", [])
        if not isinstance(phases, list):
            raise InputError(f"{source}: {stage}.phases must be a list of tables; write [[{stage}.phases]]")
        tables |= {f"{stage}.phases.{i}": phase for i, phase in enumerate(phases)}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"{source}: {name} must be a table (it is {table!r})")


def dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def find_config(source: str, folder: Path = Path()) -> Path:
    """A TOML file by its path in `folder`, or by its name: a shipped one, or one of the folder `configs`."""
    path = folder / os.path.expanduser(source)  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)
    for file in (path, CONFIGS / f"{source}.toml", folder / "configs" / f"{source}.toml"):
        if file.is_file():
            return file
    raise InputError(f"{source}: no such configuration file; the shipped ones are {', '.join(shipped())}")


def read_config(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a configuration file, with absolute paths, over those of its `base`."""
    log.debug(f"reading {path}")
    values = read_toml(path)
    check_tables(without_stages(values), path)  # what follows looks into the tables
    base, values = values.pop("base", ""), resolve_data(values, path.parent)
    if base:
        if not isinstance(base, str) or path in below:
            raise InputError(f"{path}: base must be another configuration (it is {base!r})")
        values = merged(read_config(find_config(base, path.parent), (*below, path)), values)
    return without_stages(values)


def refuse_special(data: str) -> None:
    """Refuses a pipe or a device, which would be read for ever, and a link that leads to itself."""
    try:
        mode = os.stat(os.path.expanduser(data)).st_mode  # noqa: PTH111 (Path follows no link to itself)
    except OSError as error:
        if error.errno != errno.ELOOP:
            return  # a URL, or reported where it is read
        raise InputError(f"--data {data}: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"--data {data}: neither a file nor a folder")


def drop_unused(values: dict[str, Any]) -> None:
    """Drops corpora without data that no stage uses, as those of a `base` whose stages are left out."""
    phases = [phase for stage in TRAININGS for phase in dict_of(values.get(stage)).get("phases", [])]
    used = [name for phase in phases if isinstance(names := phase.get("corpora"), list) for name in names]
    used += [dict_of(values.get("evaluate")).get(task) for task in ("retrieval", "qa")]
    corpora = dict_of(values.get("corpora"))
    for name, corpus in list(corpora.items()):
        if name not in used and len(corpora) > 1 and not any(map(corpus.get, ("manifest", "data", "shards"))):
            del corpora[name]


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of `more` added, which take precedence.

    >>> merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"c": 3}, "d": [2]})
    {'a': {'b': 1, 'c': 3}, 'd': [2]}
    """
    both = {key: merged(values[key], more[key]) for key in more if dict_of(values.get(key)) and dict_of(more[key])}
    return {**values, **more, **both}


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def resolve_data(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Makes relative paths of corpora, models and other files absolute."""

    def resolve(table: Any, key: str) -> None:
        """Of a path, or a list of paths; the classes report other values."""
        if isinstance(file := dict_of(table).get(key), str) and file:
            table[key] = str(absolute(file, base))
        elif isinstance(file, list):
            table[key] = [str(absolute(one, base)) if isinstance(one, str) else one for one in file]

    for corpus in map(dict_of, values.get("corpora", {}).values()):
        resolve(corpus, "data")
        resolve(corpus, "shards")
        for split in dict_of(corpus.get("annotations")):
            resolve(corpus["annotations"], split)
        if isinstance(root := corpus.get("root"), str) and root:  # maybe of another machine: links are not resolved
            corpus["root"] = os.path.normpath(base.absolute() / root)
    resolve(values, "pretrained")
    resolve(values, "templates")
    for stage, key in FILES:
        resolve(values.get(stage), key)
    for stage, key in FILES_OR_NAMES:
        name = dict_of(values.get(stage)).get(key)
        if not isinstance(name, str) or not name or is_word(stage, key, name):
            continue
        if isinstance(path := absolute(name, base), Path) and path.exists():
            values[stage][key] = str(path)
    return values


def with_data(values: dict[str, Any], data: str) -> dict[str, Any]:
    """Replaces all corpora by one, `data`, decoded as the first that is evaluated. The phases of a stage become one
    phase of their total length; if some are in steps and others in epochs, each keeps its own. The classes report
    lengths that are no numbers."""
    corpora, evaluate = values.get("corpora", {}), values.setdefault("evaluate", {})
    evaluated = [dict_of(evaluate).get(task) for task in ("retrieval", "qa")]
    first: dict[str, Any] = next((c for name, c in corpora.items() if name in evaluated), {}) or next(
        iter(corpora.values()), {}
    )
    replaced = ("manifest", "data", "shards", "kinds", "annotations", "root")
    settings = {key: value for key, value in first.items() if key not in replaced}
    values["corpora"] = {"data": settings | {"data": str(absolute(data))}}
    values.pop("render_sample", None)
    for stage in TRAININGS:
        phases = values.get(stage, {}).get("phases", [])
        lengths = [{key: phase[key] for key in ("steps", "epochs") if phase.get(key)} for phase in phases]
        keys = {key for length in lengths for key in length}
        if len(keys) == 1 and all(isinstance(n, int | float) for length in lengths for n in length.values()):
            (key,) = keys
            lengths = [{key: sum(length.get(key, 0) for length in lengths)}]
        if phases:
            values[stage]["phases"] = [{"corpora": ["data"], **length} for length in lengths]
    for task, stage in (("retrieval", "finetune_retrieval"), ("qa", "finetune_qa")):
        if stage in values or evaluate.get(task):
            evaluate[task] = "data"
    return values


def skips_questions(source: str, changes: list[str], config: PipelineConfig) -> bool:
    """Whether question answering is in the configuration file, no change leaves it out, and it was removed, because the
    data has no questions."""
    if config.finetune_qa or "finetune_qa" not in read_config(find_config(source)):
        return False
    return "finetune_qa" in without_stages({"finetune_qa": {}, **changed(changes)})
