"""Checks of a plan before anything runs, so that no mistake is found after hours of training."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

from alpro.errors import InputError
from alpro.files import read_json
from alpro.models.precision import check_devices
from alpro.models.pretrained import HubName
from alpro.models.word_pieces import pad_length
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.plan import Plan
from alpro.pipeline.store.step import Step
from alpro.shards.sources.manifest import Manifest
from alpro.shards.sources.plan import DecodePlan
from alpro.stages import EVALUATIONS, WITH_MODEL
from alpro.stages.decode_videos import check_texts, make_plan
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig, check_items
from alpro.stages.execution.interface import Resources
from alpro.stages.training.config import EncoderConfig, TrainingConfig

PADDING = 8  # texts are padded to a multiple of it
# The texts on whose validation items a fine-tuning selects its weights.
SELECTION_TEXTS = {"finetune_retrieval": "captions", "finetune_qa": "questions"}


def check_plan(plan: Plan, elsewhere: Collection[str] = ()) -> None:
    """Check what the configuration, the files and this machine tell.

    Args:
        elsewhere: the stages that run on other machines.

    Raises:
        InputError: If a step that has to run would fail, or would have nothing to evaluate.
    """
    steps = plan.steps_to_run
    for step in steps:
        if step.unreadable:
            raise InputError(step.unreadable)
        if isinstance(step.config, EncoderConfig):
            step.config.check_encoders()

    resources = plan.settings.resources
    check_text_lengths(plan.settings, steps)
    check_division(steps, resources)
    if any(step.stage in WITH_MODEL and step.stage not in elsewhere for step in steps):
        check_devices(resources.device, resources.processes)
    check_test_items(plan)
    check_validation_items(plan)


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
                f"texts are padded to a multiple of {PADDING}"
            )


def check_division(steps: Iterable[Step], resources: Resources) -> None:
    """Raise InputError if the processes of a training cannot share its batch equally."""
    for step in steps:
        if isinstance(step.config, TrainingConfig):
            try:
                step.config.check_division(resources.processes * resources.nodes)
            except InputError as error:
                raise InputError(f"{step.name}: {error}") from error


def check_test_items(plan: Plan) -> None:
    """Check that the corpora of the evaluations have items to evaluate: a decoded one as the
    evaluation will, before days of training; another one by its manifest, before it is decoded.

    Raises:
        InputError: If a corpus has none.
    """
    for step in plan.steps_to_run:
        if step.stage not in EVALUATIONS:
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            source = step.inputs[name]
            # The store, because the corpus may have been built since the plan was made.
            if plan.store.find(source):
                check_items(config, name, plan.store.folder(source))
            # Shards and the sample are checked once the corpus is made.
            elif "manifest" in source.given:
                decoding = plan.settings.corpora[name].decoding
                manifest = Manifest(Path(source.given["manifest"]))
                check_rows(config, name, make_plan(decoding, manifest))


def check_validation_items(plan: Plan) -> None:
    """Check by their manifests that the corpora of the fine-tunings have items for validation.

    Raises:
        InputError: If a fine-tuning has none.
    """
    for step in plan.steps_to_run:
        if step.stage not in SELECTION_TEXTS:
            continue
        for name in cast(TrainingConfig, step.config).corpora:
            given = step.inputs[name].given
            if "manifest" in given:
                decoding = plan.settings.corpora[name].decoding
                rows = make_plan(decoding, Manifest(Path(given["manifest"])))
                check_validation_rows(plan.settings, step.stage, name, rows)


def check_validation_rows(
    settings: PipelineConfig, stage: str, name: str, plan: DecodePlan
) -> None:
    """Raise InputError if a fine-tuning on this corpus alone would have no item for validation."""
    config = getattr(settings, stage)
    counts = plan.splits()["validation"]
    column = SELECTION_TEXTS[stage]
    if config and config.corpora == [name] and not counts[column]:
        reason = f": {counts['why_empty']}" if counts["why_empty"] else ""
        raise InputError(
            f"{name}: no validation item has {column}{reason}; {stage} selects its weights on them: "
            f"assign some in the column split, or raise corpora.{name}.validation"
        )


def check_rows(config: EvaluationConfig, name: str, plan: DecodePlan) -> None:
    """Raise InputError if a corpus, once decoded, would have no item to evaluate."""
    check_texts(plan)
    counts = plan.splits()[config.split]
    reason = f": {counts['why_empty']}" if counts["why_empty"] else ""
    for column, task in TASKS.items():
        if getattr(config, task) == name and not counts[column]:
            raise InputError(
                f"{name}: no {config.split} item has {column}{reason}; assign some in the column "
                f"split, raise corpora.{name}.{config.split}, or set evaluate.{task} to an empty "
                "string"
            )
