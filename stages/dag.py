"""The steps of a pipeline in order: the stage of each, its configuration, and the steps that make
its inputs.

The corpora come first: `pipeline/plan/plan.py` makes a step for each of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from alpro.errors import InputError
from alpro.models.folder import read_kind
from alpro.stages.evaluate import Config as EvaluateOne
from alpro.stages.evaluation.protocol import OWN_CLIP
from alpro.stages.evaluation.score_names import FINE_TUNED, PRETRAINED, PROMPTER
from alpro.stages.execution.interface import StageConfig
from alpro.stages.execution.step import Step
from alpro.stages.train_tokenizer import Config as TrainTokenizer

# The configuration of a pipeline as this module sees it: a table for each stage, None for one that
# is left out. Its class is in a room above.
Pipeline: TypeAlias = Any

# Tasks of the models in `pretrained`, with the steps that evaluate them.
START_TASKS = {"pretrain": "pretrained", "retrieval": "retrieval", "qa": "qa"}
# Keys of [evaluate]: of every model, of one that ranks, and of one that was fine-tuned.
EVERY = {"top_k", "split", "min_decoded_share", "exclude_overlap", "mixed_precision"}
RANKING = {"retrieval", "frames", "max_text_tokens", *EVERY}
CONTROLS = {"controls", "seed"}


@dataclass
class Dag:
    """The steps of a pipeline.

    Attributes:
        corpora: The steps that make its corpora, by their names.
        with_files: Adds the digests of the files that a step names.
        steps: The other steps, in an order in which they can run.
    """

    corpora: Mapping[str, Step]
    with_files: Callable[[Step], Step]
    steps: list[Step] = field(default_factory=list)

    def add(
        self,
        stage: str,
        config: StageConfig,
        inputs: Mapping[str, str] = {},
        *,
        corpora: Iterable[str] = (),
        given: Mapping[str, Path] = {},
        name: str = "",
    ) -> None:
        """Add a step.

        Args:
            inputs: The stage that makes each input. If the pipeline has no such step, the input is
                omitted as well.
            corpora: Names of the corpora that it reads.
            given: Model folders of the user, by input.
            name: Name of the step, if its stage has several.
        """
        built = {step.stage: step for step in self.steps}
        sources = {key: built[one] for key, one in inputs.items() if one in built}
        for corpus in corpora:
            if corpus in sources or corpus in given:
                # An artifact's record lists both by name.
                raise InputError(
                    f"corpora.{corpus}: this is the name of an input of {stage}; choose another"
                )
        sources |= {corpus: self.corpora[corpus] for corpus in corpora}
        step = Step(stage, name or stage, config, sources, given=given)
        self.steps.append(self.with_files(step))


def list_steps(
    pipeline: Pipeline,
    corpora: Mapping[str, Step],
    with_files: Callable[[Step], Step],
) -> list[Step]:
    """Return the steps of a pipeline that come after its corpora (see `Dag`)."""
    dag = Dag(corpora, with_files)
    pretrain = pipeline.pretrain
    if pretrain:
        tokenizer = pipeline.train_tokenizer
        if tokenizer.tokenizer == "train":
            dag.add("train_tokenizer", tokenizer, corpora=pretrain.corpora)
        else:
            # It reads no captions, and depends on no other key.
            tokenizer = TrainTokenizer(tokenizer=tokenizer.tokenizer)
            dag.add("train_tokenizer", tokenizer)
        vocabulary = pipeline.build_vocabulary
        dag.add("build_vocabulary", vocabulary, corpora=pretrain.corpora)

    prompter = pipeline.train_prompter
    teaches = pretrain is not None and pretrain.needs_prompter
    is_read = teaches or pipeline.finetunes_clip
    if prompter and is_read and not pipeline.cache_prompts.prompter:
        # A CLIP has a tokenizer of its own.
        inputs = {} if prompter.clip else {"tokenizer": "train_tokenizer"}
        dag.add("train_prompter", prompter, inputs, corpora=prompter.corpora)
    if teaches:
        inputs = {"vocabulary": "build_vocabulary", "prompter": "train_prompter"}
        dag.add("cache_prompts", pipeline.cache_prompts, inputs)

    if pretrain:
        inputs = {
            "tokenizer": "train_tokenizer",
            "vocabulary": "build_vocabulary",
            "prompter": "train_prompter",
            "prompts": "cache_prompts",
        }
        dag.add("pretrain", pretrain, inputs, corpora=pretrain.corpora)

    start = {"model": Path(pipeline.pretrained)} if pipeline.pretrained else {}
    for stage in ("finetune_retrieval", "finetune_qa"):
        config = getattr(pipeline, stage)
        if config:
            inputs = {"model": "pretrain"}
            dag.add(stage, config, inputs, corpora=config.corpora, given=start)

    add_evaluations(dag, pipeline, start)
    return dag.steps


def add_evaluations(dag: Dag, pipeline: Pipeline, start: Mapping[str, Path]) -> None:
    """Add a step for each model of a pipeline that there is anything to ask about.

    Args:
        start: The model folder that the pipeline starts from, as the input `model`.
    """
    table = pipeline.evaluate
    start_task = find_start_task(start["model"]) if start else ""

    def add(
        task: str,
        model_name: str,
        keys: set[str],
        inputs: Mapping[str, str],
        own: Mapping[str, Any] = {},
    ) -> None:
        # Only the keys that concern the model: another control must not evaluate the pre-trained
        # model again.
        values = {key: getattr(table, key) for key in keys} | {"model_name": model_name}
        config = EvaluateOne.model_construct(**{**values, **own})
        # Without a corpus for what the model can do, there is nothing to ask about.
        if config.corpora:
            dag.add(
                "evaluate",
                config,
                inputs,
                corpora=config.corpora,
                given=start if task == start_task else {},
                name=f"evaluate {task}",
            )

    baseline = pipeline.clip if table.baseline == OWN_CLIP else table.baseline
    if baseline:
        # By default as many as the model of pre-training has, or the CLIP that is trained.
        trained = pipeline.train_prompter or pipeline
        frames = table.frames or trained.model.video.frames
        own = {"baseline": baseline, "frames": frames}
        add("baseline", Path(baseline).name, RANKING, {}, own)

    pretrain = pipeline.pretrain
    if pipeline.finetunes_clip or (pretrain and pretrain.needs_prompter):
        name = FINE_TUNED if pipeline.finetunes_clip else PROMPTER
        own = {} if table.retrieval else {"qa": table.qa}
        if pretrain:
            own["threshold"] = pretrain.threshold
        inputs = {"model": "train_prompter", "prompts": "cache_prompts"}
        add("prompter", name, {*RANKING, "entity_crops"}, inputs, own)

    # A model that was fine-tuned before has no score as pre-trained.
    if start_task == "pretrained" or (pretrain and not start):
        add("pretrained", PRETRAINED, RANKING, {"model": "pretrain"})
    if pipeline.finetune_retrieval or start_task == "retrieval":
        inputs = {"model": "finetune_retrieval"}
        add("retrieval", FINE_TUNED, RANKING | CONTROLS, inputs)
    if pipeline.finetune_qa or start_task == "qa":
        # The numbers of frames and tokens are those of retrieval.
        keys = {"qa", "contrasts", *EVERY, *CONTROLS}
        add("qa", FINE_TUNED, keys, {"model": "finetune_qa"})


def find_start_task(folder: Path) -> str:
    """Return the step that evaluates the model which a pipeline starts from. Raises InputError if
    the folder has no model that is pre-trained or fine-tuned."""
    task = read_kind(folder, "task")
    if task not in START_TASKS:
        kind = task or "no model folder"
        raise InputError(
            f"pretrained: {folder}: {kind}; give a model of pre-training or fine-tuning"
        )
    return START_TASKS[task]
