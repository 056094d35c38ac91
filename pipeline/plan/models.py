"""Settings of a command on this machine, where the models that they name may be local folders."""

from typing import Literal

from alpro.errors import InputError
from alpro.models.initial import read_sizes
from alpro.pipeline.config.command import MODEL_STAGES, Command
from alpro.pipeline.config.load import Values, merge, read_values, validate
from alpro.pipeline.config.pipeline_config import PipelineConfig

ENCODERS: tuple[tuple[str, Literal["vit", "bert"]], ...] = (("video", "vit"), ("text", "bert"))


def read_settings(command: Command) -> PipelineConfig:
    """Load the configuration of a command as it runs on this machine.

    Raises:
        InputError: If the configuration is invalid, or its encoders do not go together.
    """
    settings = validate(with_encoder_sizes(read_values(command)), command)
    check_encoders(settings)
    return settings


def with_encoder_sizes(values: Values) -> Values:
    """Give the models the sizes of a CLIP (`vit`) or a BERT in a local folder, because others could
    not be loaded. Such a BERT is also the tokenizer, unless one is set.

    A stage that names no such folder has the sizes of the other stage. An encoder that is a name on
    the hub has the sizes of the configuration.

    Args:
        values: values of a configuration that are not validated.
    """
    tables = {stage: values.get(stage) for stage in MODEL_STAGES}
    stages = {stage: table for stage, table in tables.items() if isinstance(table, dict)}
    if values.get("pretrained"):
        return values

    for encoder, key in ENCODERS:
        names = {stage: table.get(key) for stage, table in stages.items()}
        sizes = {}
        for stage, name in names.items():
            sizes[stage] = read_sizes(key, name) if isinstance(name, str) else {}
        first = next((stage for stage in stages if sizes[stage]), "")
        if not first:
            continue

        models = {stage: {"model": {encoder: sizes[stage] or sizes[first]}} for stage in stages}
        # The later stages continue the model of pre-training, so [model] has its sizes.
        values = merge(values, models.pop("pretrain", {}))
        # A prompter may have sizes of its own.
        values = merge(models, values)
        if encoder == "text":
            values = merge({"train_tokenizer": {"tokenizer": names[first]}}, values)
    return values


def check_encoders(settings: PipelineConfig) -> None:
    """Check that a prompter with our towers fits the model of pre-training.

    Raises:
        InputError: If pre-training copies encoders of other sizes, or the prompter labels crops of
            frames that it sees differently.
    """
    teacher = settings.train_prompter
    student = settings.pretrain
    if not teacher or not student or settings.cache_prompts.prompter or teacher.clip:
        return
    if teacher.model == student.model:
        return

    if student.start == "prompter":
        raise InputError(
            "pretrain.start = prompter copies both encoders, but train_prompter and pretrain have "
            "different ones: name the same vit and bert in both, without [train_prompter.model], "
            "or start from scratch"
        )
    # A prompter may be smaller than the student, if both see the same patches.
    for key in ("patch_size", "image_size", "frames"):
        size = getattr(teacher.model.video, key)
        student_size = getattr(student.model.video, key)
        if size != student_size:
            raise InputError(
                f"video.{key} of the prompter is {size}, and of pretrain {student_size}: the "
                "prompter labels crops of the same frames, in the same patches; make them equal "
                "(vit, or [train_prompter.model])"
            )
