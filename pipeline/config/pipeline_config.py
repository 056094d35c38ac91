"""The configuration of a pipeline: what its stages compute, the corpora, and resources; one frozen
object."""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from alpro.models.alpro import ModelConfig
from alpro.models.words import Templates
from alpro.pipeline.config.command import SHARED
from alpro.shards.sources.form import Columns, Names
from alpro.stages import TRAININGS
from alpro.stages.build_vocabulary import Config as BuildVocabulary
from alpro.stages.cache_prompts import Config as CachePrompts
from alpro.stages.decode_videos import Config as DecodeVideos
from alpro.stages.evaluation.protocol import OWN_CLIP, TASKS, EvaluationConfig
from alpro.stages.execution.interface import FILE, FilePath, Resources
from alpro.stages.finetune_qa import Config as FinetuneQa
from alpro.stages.finetune_retrieval import Config as FinetuneRetrieval
from alpro.stages.index_shards import Config as IndexShards
from alpro.stages.pretrain import Config as Pretrain
from alpro.stages.render_sample import Config as RenderSample
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.train_tokenizer import Config as TrainTokenizer
from alpro.stages.training.config import TrainingConfig

AnnotationFile = Literal["train", "validation", "test", "texts"]


class Corpus(DecodeVideos, frozen=True):
    """A corpus: where its videos are, and how they are decoded. Set exactly one of `manifest` (of
    the rendered sample), `data` and `shards`."""

    data: FilePath = ""
    """a manifest, a folder of videos, or a URL; relative to this file, in --set to the current
    folder"""
    shards: FilePath = ""
    """existing shards: a folder or URL with *.tar files, relative like `data`; only `kinds` and
    `max_reject_share` apply"""
    annotations: dict[AnnotationFile, Names] = Field(default={}, json_schema_extra=FILE)
    """annotation files by split (`train`, `validation`, `test`), and `texts` if these only list
    videos"""
    root: str = Field(default="", json_schema_extra={"path": "root"})
    """folder that the names in tables are relative to; of absolute names, the folder that
    corresponds to `data`"""

    columns: Columns | None = None
    """the columns of the tables, if they have no published form"""

    @model_validator(mode="after")
    def _check_keys(self) -> "Corpus":
        if sum(map(bool, (self.manifest, self.data, self.shards))) > 1:
            raise ValueError("set one of data, shards, and manifest (of the sample)")
        extra = self.model_fields_set - IndexShards.model_fields.keys()
        extra -= {"manifest", "data", "shards"}
        if self.shards and extra:
            raise ValueError(f"shards are used unchanged; remove the key {min(extra)}")
        return self


class PipelineConfig(
    BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True
):
    """What a pipeline computes, and the resources it may use, which do not change the results."""

    name: str = Field(min_length=1, pattern=r"^[\w-]+$")
    """name of the pipeline, and of its experiment in MLflow"""
    pretrained: FilePath = ""
    """a model folder instead of `train_prompter` and `pretrain`; relative like
    `corpora.NAME.data`"""
    max_steps: int = Field(default=0, ge=0)
    """maximum steps of each phase of training, also of one that counts epochs, for a first try; 0:
    no limit"""
    render_sample: RenderSample | None = None
    """the sample corpus; without this table, no corpus is rendered"""
    corpora: dict[str, Corpus] = Field(min_length=1)
    """the corpora by name"""
    model: ModelConfig = ModelConfig()
    """sizes of the prompter and of ALPRO"""
    templates: Templates = Templates()
    """the prompts"""
    train_tokenizer: TrainTokenizer = TrainTokenizer()
    build_vocabulary: BuildVocabulary = BuildVocabulary()
    train_prompter: TrainPrompter | None = None
    cache_prompts: CachePrompts = CachePrompts()
    pretrain: Pretrain | None = None
    finetune_retrieval: FinetuneRetrieval | None = None
    finetune_qa: FinetuneQa | None = None
    evaluate: EvaluationConfig = EvaluationConfig()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _one_start(self) -> "PipelineConfig":
        """Check that there is one model to start from: a prompter that this pipeline trains or names
        for pre-training, a CLIP that it fine-tunes, or a model that is there already."""
        named_clip = self.cache_prompts.prompter
        if self.pretrained and named_clip:
            raise ValueError("set pretrained, or cache_prompts.prompter, not both")

        has_prompter = named_clip or self.train_prompter
        has_start = self.pretrained or (has_prompter and self.pretrain)
        if not has_start and not self.finetunes_clip:
            raise ValueError(
                "set [train_prompter] or cache_prompts.prompter, and [pretrain]; or only "
                "[train_prompter] with a clip; or pretrained: the model folder to start from"
            )
        if self.evaluate.baseline == OWN_CLIP and not self.clip:
            raise ValueError(
                "evaluate.baseline: no CLIP is trained; set it to a hub name or a folder"
            )
        return self

    @model_validator(mode="after")
    def _equal_encoders(self) -> "PipelineConfig":
        """Check that the prompter fits the model of pre-training."""
        # A CLIP has encoders of its own.
        teacher = None if self.clip else self.train_prompter
        student = self.pretrain
        is_equal = teacher and student and teacher.model == student.model
        if student and student.start == "prompter" and not is_equal:
            raise ValueError(
                "pretrain.start = prompter copies both encoders, but those of the prompter are not "
                "of [model]; set it to scratch"
            )
        if teacher is None or student is None:
            return self

        # A prompter may be smaller than the student, if both see the same patches.
        keys = {"patch_size", "image_size", "frames"}
        sizes = teacher.model.video.model_dump(include=keys)
        student_sizes = student.model.video.model_dump(include=keys)
        if sizes != student_sizes:
            raise ValueError(
                f"model.video of the prompter has {sizes}, and that of pretrain {student_sizes}: the "
                "prompter labels crops of the same frames, in the same patches; make them equal"
            )
        return self

    @model_validator(mode="after")
    def _known_corpora(self) -> "PipelineConfig":
        for name, key in self.used_corpora.items():
            if name not in self.corpora:
                raise ValueError(
                    f"{key}: no corpus {name!r}; the corpora are {', '.join(self.corpora)}"
                )
            corpus = self.corpora[name]
            if corpus.manifest and self.render_sample is None:
                raise ValueError(f"corpora.{name}.manifest needs [render_sample]")
            if not (corpus.manifest or corpus.data or corpus.shards):
                option = ", or --data" if name == "data" else ""
                raise ValueError(f"set corpora.{name}.data{option}")
        return self

    @property
    def used_corpora(self) -> dict[str, str]:
        """The corpora that stages read, each with a key that names it."""
        keys: dict[str, str] = {}
        for stage, config in self.trainings().items():
            keys |= dict.fromkeys(config.corpora, f"{stage}.phases")
        for column, name in self.evaluate.texts:
            keys[name] = f"evaluate.{TASKS[column]}"
        return keys

    @property
    def clip(self) -> str:
        """The CLIP or SigLIP that the prompter is, or is trained from; empty for any other."""
        trained = self.train_prompter.clip if self.train_prompter else ""
        return self.cache_prompts.prompter or trained

    @property
    def finetunes_clip(self) -> bool:
        """Whether the pipeline ends with a CLIP that it trains further."""
        others = (
            self.pretrained,
            self.cache_prompts.prompter,
            self.pretrain,
            self.finetune_retrieval,
            self.finetune_qa,
        )
        return bool(self.clip) and not any(others)

    def trainings(self) -> dict[str, TrainingConfig]:
        """Return the training stages that this pipeline has, by name."""
        return {stage: table for stage, table in self if stage in TRAININGS and table}

    def limited(self) -> "PipelineConfig":
        """Return the configuration with at most `max_steps` in each phase of training."""
        limit = self.max_steps
        stages: dict[str, TrainingConfig] = {}
        for stage, config in self.trainings().items():
            phases = []
            for phase in config.phases:
                steps = min(phase.steps or limit, limit)
                phases.append(phase.model_copy(update={"steps": steps, "epochs": 0}))
            stages[stage] = config.model_copy(update={"phases": tuple(phases)})
        return self.model_copy(update=stages)

    def as_written(self) -> dict[str, Any]:
        """Return the values as a user writes them, with [model] and [templates] once."""
        once = {stage: {key} for key, stages in SHARED.items() for stage in stages}
        if self.train_prompter and self.train_prompter.model != self.model:
            del once["train_prompter"]  # It has sizes of its own.
        return self.model_dump(mode="json", exclude_none=True, exclude=once)
