"""The configuration of a pipeline: what its stages compute, the corpora, and resources; one frozen
object."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.models.alpro import ModelConfig
from alpro.models.folder import read_task
from alpro.models.word_pieces import padded
from alpro.models.words import Templates
from alpro.shards.sources.annotations import keyed
from alpro.stages import STAGES, TRAININGS
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

AnnotationFile = Literal["train", "validation", "test", "texts"]


class Corpus(DecodeVideos, frozen=True):
    """A corpus: where its videos are, and how they are decoded. Set exactly one of `manifest` (of
    the rendered sample), `data` and `shards`."""

    data: str = Field(
        default="",
        description="a manifest, a folder of videos, or a URL; relative to this file, in --set to "
        "the current folder",
    )
    shards: str = Field(
        default="",
        description="existing shards: a folder or URL with *.tar files, relative like `data`; only "
        "`kinds` and "
        "`max_reject_share` apply",
    )
    annotations: dict[AnnotationFile, str | tuple[str, ...]] = Field(
        default={},
        description="annotation files by split (`train`, `validation`, `test`), and `texts` if "
        "these only list videos",
    )
    root: str = Field(
        default="",
        description="folder that the names in `annotations` are relative to; of absolute names, "
        "the folder that "
        "corresponds to `data`",
    )

    @property
    def decoding(self) -> DecodeVideos:
        """The configuration of the stage that decodes this corpus."""
        values = self.model_dump(exclude={"data", "shards", "annotations", "root"})
        return DecodeVideos.model_validate(values)

    @property
    def names_root(self) -> Path | None:
        """The folder that the names in the annotation files are relative to, if it is not the
        data."""
        return Path(self.root) if self.root else None

    @property
    def annotation_files(self) -> dict[str, Path]:
        """The annotation files by split; further files of a split have keys of their own."""
        files: dict[str, Sequence[str]] = {
            split: [file] if isinstance(file, str) else file
            for split, file in self.annotations.items()
        }
        return keyed(files)


# The keys that a corpus of existing shards may have; one of the first three says where it is.
KEYS_WITH_SHARDS = {"manifest", "data", "shards", "kinds", "max_reject_share"}


class PipelineConfig(BaseModel):
    """What a pipeline computes, and the resources it may use, which do not change the results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        min_length=1,
        pattern=r"^[\w-]+$",
        description="name of the pipeline, and of its experiment in MLflow",
    )
    pretrained: str = Field(
        default="",
        description="a model folder instead of `train_prompter` and `pretrain`; relative like "
        "`corpora.NAME.data`",
    )
    render_sample: RenderSample | None = Field(
        default=None, description="the sample corpus; without this table, no corpus is rendered"
    )
    corpora: dict[str, Corpus] = Field(min_length=1, description="the corpora by name")
    model: ModelConfig = Field(
        default=ModelConfig(), description="sizes of the prompter and of ALPRO"
    )
    templates: Templates = Field(default=Templates(), description="the prompts")
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
        """Pre-training starts from a prompter that this pipeline trains or names, or is replaced by
        a model that is there already."""
        teacher = self.train_prompter
        student = self.pretrain
        named_clip = self.cache_prompts.prompter

        if self.pretrained and named_clip:
            raise ValueError("set pretrained, or cache_prompts.prompter, not both")
        if not self.pretrained and not ((named_clip or teacher) and student):
            raise ValueError(
                "set [train_prompter] or cache_prompts.prompter, and [pretrain]; or pretrained: "
                "the "
                "model folder to start from"
            )

        # The weights of a CLIP's towers do not fit into ours.
        clip = named_clip or (teacher and teacher.clip)
        if clip and student and student.start == "prompter":
            raise ValueError(
                f"pretrain.start: the prompter has the towers of {clip!r}, not ours; set it to "
                f"scratch"
            )
        return self

    @model_validator(mode="after")
    def _encoders_agree(self) -> "PipelineConfig":
        """A prompter with our towers labels crops of the frames that pre-training sees."""
        teacher = self.train_prompter
        student = self.pretrain
        if not teacher or not student or self.cache_prompts.prompter or teacher.clip:
            return self
        if teacher.model == student.model:
            return self

        if student.start == "prompter":
            raise ValueError(
                "pretrain.start = prompter copies both encoders, but train_prompter and pretrain "
                "have "
                "different ones: name the same vit and bert in both, without "
                "[train_prompter.model], "
                "or start from scratch"
            )

        # A prompter may be smaller than the student, if both see the same patches.
        for key in ("patch_size", "image_size", "frames"):
            size = getattr(teacher.model.video, key)
            student_size = getattr(student.model.video, key)
            if size != student_size:
                raise ValueError(
                    f"video.{key} of the prompter is {size}, that of pretrain {student_size}: it "
                    "labels crops of the same frames, in the same patches; make them equal (vit, "
                    "or "
                    "[train_prompter.model])"
                )
        return self

    @model_validator(mode="after")
    def _texts_fit(self) -> "PipelineConfig":
        """No stage has longer texts than the text encoder takes. `check_text_lengths` of the plan
        looks at a model in `pretrained`, whose configuration is a file."""
        if self.pretrained:
            return self

        configs: dict[str, TrainingConfig | Evaluate] = {**self.trainings()}
        # `zero_shot` shares this table.
        configs["evaluate"] = self.evaluate
        for stage, config in configs.items():
            # The models that `evaluate` loads have the sizes of [model].
            limit = getattr(config, "model", self.model).text.max_length
            tokens = config.max_text_tokens
            if padded(tokens) > limit:
                raise ValueError(
                    f"{stage}.max_text_tokens {tokens}, padded to {padded(tokens)}, is more than "
                    f"model.text.max_length {limit}"
                )
        return self

    @model_validator(mode="after")
    def _known_corpora(self) -> "PipelineConfig":
        for name, corpus in self.corpora.items():
            self._check_corpus(name, corpus)

        used = {("evaluate.retrieval", self.evaluate.retrieval), ("evaluate.qa", self.evaluate.qa)}
        for stage, config in self.trainings().items():
            used |= {(f"{stage}.phases", name) for name in config.corpora}
        # Sorted, because a set has another order in each process: one mistake, one message.
        for key, name in sorted(used):
            if name and name not in self.corpora:
                raise ValueError(
                    f"{key}: no corpus {name!r}; the corpora are {', '.join(self.corpora)}"
                )
        return self

    def _check_corpus(self, name: str, corpus: Corpus) -> None:
        """Raises ValueError if a corpus has a name that is taken, or keys that do not go
        together."""
        if name in INPUTS:
            raise ValueError(
                f"corpora.{name}: this is the name of an input of the stages; choose another"
            )

        if sum(map(bool, (corpus.manifest, corpus.data, corpus.shards))) != 1:
            raise ValueError(
                f"corpora.{name}: set one of data or shards (your own; or --data), or manifest (in "
                "the sample)"
            )

        extra = corpus.model_fields_set - KEYS_WITH_SHARDS
        if corpus.shards and extra:
            raise ValueError(
                f"corpora.{name}.{min(extra)}: shards are used unchanged; remove this key"
            )

        # Artifacts record where their corpora are.
        refuse_credentials(f"corpora.{name}.data", corpus.data)
        refuse_credentials(f"corpora.{name}.shards", corpus.shards)

        if corpus.root and not corpus.annotations:
            raise ValueError(
                f"corpora.{name}.root: it is only used with annotations; remove this key"
            )
        if corpus.manifest and self.render_sample is None:
            raise ValueError(f"corpora.{name}.manifest needs [render_sample]")

    @property
    def uses_prompter(self) -> bool:
        """Whether pre-training needs a prompter, for pseudo-labels or initial weights."""
        return self.pretrain is not None and self.pretrain.needs_prompter

    @property
    def start(self) -> Path | None:
        """The model folder that the pipeline starts from, instead of pre-training."""
        return Path(self.pretrained) if self.pretrained else None

    @property
    def start_task(self) -> str:
        """The task of the model in `start`: pretrained, retrieval or qa; empty without one. Raises
        InputError if the folder has no model that is pre-trained or fine-tuned."""
        if self.start is None:
            return ""

        try:
            task = read_task(self.start)
        except ValueError as error:
            raise InputError(f"pretrained: {error}") from error

        if task == "prompter":
            raise InputError(
                f"pretrained: {self.start} is a prompter; give a model of pre-training or "
                f"fine-tuning"
            )

        # The stages call the input that takes such a model `pretrained`.
        return "pretrained" if task == "pretrain" else task

    def trainings(self) -> dict[str, TrainingConfig]:
        """The training stages that this pipeline has, by name."""
        configs = {stage: getattr(self, stage) for stage in TRAININGS}
        return {stage: config for stage, config in configs.items() if config is not None}


# The table of a stage that shares that of another one. decode_videos and index_shards are
# configured by [corpora.NAME].
TABLE_OF = {"zero_shot": "evaluate"}


def input_names() -> set[str]:
    """The names of the inputs of all stages, without those of corpora."""
    names: set[str] = set()
    for stage in STAGES:
        names |= import_module(f"alpro.stages.{stage}").Inputs.model_fields.keys()
    return names - {"corpora"}


def class_in(annotation: Any) -> type[StageConfig]:
    """The class of a field, which is `Class` or `Class | None`."""
    classes = (*get_args(annotation), annotation)
    return next(kind for kind in classes if isinstance(kind, type))


def keys_of(path: JsonDict) -> list[tuple[str, str]]:
    """The keys that name a file, each with its stage. path: FILE, or FILE_OR_NAME."""
    keys = []
    for stage, config in STAGE_CONFIGS.items():
        for key, field in config.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("path") == path["path"]:
                keys.append((stage, key))
    return keys


# No corpus can have the name of an input: an artifact's record lists both by name.
INPUTS = input_names()
# The class of each stage's table.
STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    name: class_in(field.annotation)
    for name, field in PipelineConfig.model_fields.items()
    if name in STAGES
}
# Stages that work without a table.
ALWAYS = [
    stage for stage in STAGE_CONFIGS if PipelineConfig.model_fields[stage].default is not None
]
# Top-level tables that are part of the configuration of these stages.
SHARED = [
    (key, stage)
    for key in ("model", "templates")
    for stage, config in STAGE_CONFIGS.items()
    if key in config.model_fields
]
FILES = keys_of(FILE)
FILES_OR_NAMES = keys_of(FILE_OR_NAME)


def is_word(stage: str, key: str, value: str) -> bool:
    """Whether the value of a key is a word that is never a path, also where a file has its name."""
    extra = STAGE_CONFIGS[stage].model_fields[key].json_schema_extra
    return isinstance(extra, dict) and value in cast(list[str], extra.get("words", []))
