"""Checks of a plan before anything runs, so that no mistake is found after hours of training."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from alpro.artifact import check_artifact
from alpro.errors import InputError
from alpro.files import read_json
from alpro.models.precision import check_devices
from alpro.models.pretrained import HubName
from alpro.models.word_pieces import pad_length
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.plan import Plan
from alpro.shards.sources.manifest import Manifest
from alpro.shards.sources.plan import DecodePlan
from alpro.stages import EVALUATIONS, WITH_MODEL
from alpro.stages.decode_videos import check_texts, make_plan
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig, check_items
from alpro.stages.execution.step import Step
from alpro.stages.training.config import EncoderConfig, TrainingConfig

# The texts on whose validation items a fine-tuning selects its weights.
SELECTION_TEXTS = {"finetune_retrieval": "captions", "finetune_qa": "questions"}


def check_plan(plan: Plan, elsewhere: Collection[str] = ()) -> None:
    """Check what the configuration, the files and this machine tell.

    Args:
        elsewhere: the stages that run on other machines.

    Raises:
        InputError: If a step that has to run would fail, or would have nothing to evaluate.
    """
    resources = plan.settings.resources
    steps = plan.steps_to_run
    for step in steps:
        if step.unreadable:
            raise InputError(step.unreadable)
        if isinstance(step.config, EncoderConfig):
            step.config.check_encoders()
        if isinstance(step.config, TrainingConfig):
            try:
                step.config.check_division(resources.processes * resources.nodes)
            except InputError as error:
                raise InputError(f"{step.name}: {error}") from error

    check_text_lengths(plan.settings, steps)
    if any(step.stage in WITH_MODEL and step.stage not in elsewhere for step in steps):
        check_devices(resources.device, resources.processes)
    check_decoded(plan)
    check_imported(plan)


def fetch_models(plan: Plan, elsewhere: Collection[str] = ()) -> None:
    """Download the models of the hub that the steps to run name, unless they are in its cache, so
    that no step fails after the videos are decoded.

    Args:
        elsewhere: the stages that run on other machines.

    Raises:
        InputError: If one cannot be downloaded.
    """
    for step in plan.steps_to_run:
        if step.stage in elsewhere:
            continue
        for key, model in step.hub_models.items():
            name = HubName.parse(model, needs_owner=key != "bert")
            if name and key != "vit":  # timm has names of its own
                name.folder()


def check_text_lengths(settings: PipelineConfig, steps: Iterable[Step]) -> None:
    """Raise InputError if a step's texts are longer than its text encoder takes."""
    given = None
    if settings.pretrained:
        config = read_json(Path(settings.pretrained) / "config.json")
        given = config.get("model", {}).get("text", {}).get("max_length")

    for step in steps:
        step_model = getattr(step.config, "model", settings.model)
        limit = given or step_model.text.max_length
        tokens = getattr(step.config, "max_text_tokens", 0)
        if pad_length(tokens) > limit:
            raise InputError(
                f"{step.stage}.max_text_tokens = {tokens}: the text encoder takes {limit}, and "
                "texts are padded to a multiple of 8"
            )


def check_decoded(plan: Plan) -> None:
    """Check that the corpora which are decoded have items to evaluate, as an evaluation does, before
    days of training.

    Raises:
        InputError: If a corpus has none.
    """
    for step in plan.steps_to_run:
        config = step.config
        if not isinstance(config, EvaluationConfig):
            continue
        for column, name in config.texts:
            source = step.inputs[name]
            # The store, because the corpus may have been built since the plan was made.
            if plan.store.find(source):
                folder = plan.store.folder(source)
                check_artifact(folder)
                check_items(config, column, name, folder)


def check_imported(plan: Plan) -> None:
    """Check by their manifests that corpora have what the stages evaluate or select weights on.
    Shards and the sample are checked once they are decoded.

    Raises:
        InputError: If a corpus has none.
    """
    # Evaluations first: without test items, no model has a score.
    for step in sorted(plan.steps_to_run, key=lambda one: one.stage not in EVALUATIONS):
        if step.stage not in (*EVALUATIONS, *SELECTION_TEXTS):
            continue
        for name, source in step.inputs.items():
            if source.manifest:
                manifest = Manifest(source.manifest)
                rows = make_plan(plan.settings.corpora[name], manifest)
                check_splits(step.stage, step.config, name, rows)


def check_splits(stage: str, config: Any, name: str, rows: DecodePlan) -> None:
    """Raise InputError if a corpus, once decoded, would have no item for a stage to evaluate, or to
    select its weights on.

    Args:
        config: the configuration of the stage.
        name: name of the corpus.
        rows: the rows of the corpus.
    """
    check_texts(rows)
    if stage in SELECTION_TEXTS:
        split = "validation"
        # One of several corpora may be without validation items.
        is_alone = config.corpora == [name]
        changes = {SELECTION_TEXTS[stage]: f"{stage}=false"} if is_alone else {}
    else:
        split = config.split
        changes = {
            column: f"evaluate.{TASKS[column]}=''"
            for column, corpus in config.texts
            if corpus == name
        }

    counts = rows.splits()[split]
    for column, without in changes.items():
        if not counts[column]:
            reason = f": {counts['why_empty']}" if counts["why_empty"] else ""
            raise InputError(
                f"{name}: no {split} item has {column}{reason}; {stage} needs some: assign them in "
                f"the column split, smaller groups in the column group, raise corpora.{name}.{split}, or "
                f"leave this out with --set {without}"
            )
