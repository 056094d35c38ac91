"""Settings of a command on this machine, where the models that they name may be local folders, and
which of its changes make a variant."""

from pathlib import Path
from typing import Literal

from alpro.errors import InputError
from alpro.models.initial import read_sizes
from alpro.pipeline.config.command import MODEL_STAGES, Command
from alpro.pipeline.config.files import find_config
from alpro.pipeline.config.load import (
    Values,
    kind_of_path,
    merge,
    parse_value,
    read_config,
    read_values,
    validate,
)
from alpro.pipeline.config.pipeline_config import PipelineConfig

ENCODERS: tuple[tuple[str, Literal["vit", "bert"]], ...] = (
    ("video", "vit"),
    ("text", "bert"),
)


def read_settings(command: Command) -> PipelineConfig:
    """Load the configuration of a command as it runs on this machine: a TOML file, or a shipped one by
    name, with changes such as `pretrain.lr=1e-4`.

    Raises:
        InputError: If a value is invalid, or its encoders do not go together. The message is one
            line.
    """
    settings = validate(with_encoder_sizes(read_values(command)), command)
    check_corpora(settings, command)
    return settings


def check_corpora(settings: PipelineConfig, command: Command) -> None:
    """Check that a change adds no corpus that nothing reads, as `--data` does where the corpora have
    other names."""
    # A file may have a corpus in reserve.
    defined = read_config(find_config(command.config)).get("corpora", {})
    for name in settings.corpora.keys() - settings.used_corpora.keys() - defined.keys():
        options = " or ".join(f"corpora.{name}.data" for name in defined)
        raise InputError(f"corpora.{name}: no stage reads this corpus; set {options}")


def with_encoder_sizes(values: Values) -> Values:
    """Give the models the sizes of a CLIP (`vit`) or a BERT in a local folder, because others could
    not be loaded. Such a BERT is also the tokenizer, unless one is set.

    A stage that names no such folder has the sizes of the other stage. An encoder that is a name on
    the hub has the sizes of the configuration.

    Args:
        values: values of a configuration that are not validated.
    """
    if values.get("pretrained"):
        return values

    stages = [stage for stage in MODEL_STAGES if isinstance(values.get(stage), dict)]
    for encoder, key in ENCODERS:
        names = {stage: values[stage].get(key) for stage in stages}
        sizes = {}
        for stage, name in names.items():
            sizes[stage] = read_sizes(key, name) if isinstance(name, str) else {}
        first = next((stage for stage in stages if sizes[stage]), "")
        if not first:
            continue

        models = {
            stage: {"model": {encoder: sizes[stage] or sizes[first]}}
            for stage in stages
        }
        # The later stages continue the model of pre-training, so [model] has its sizes.
        values = merge(values, models.pop("pretrain", {}))
        # A prompter may have sizes of its own.
        values = merge(models, values)
        if encoder == "text":
            values = merge({"train_tokenizer": {"tokenizer": names[first]}}, values)
    return values


def variations(command: Command) -> list[str]:
    """Return the changes of a command that make a variant of its configuration: all but those that
    name the user's files and models, and the resources."""
    varied = []
    for change in command.changes:
        key, _, text = change.partition("=")
        keys = key.strip().split(".")
        value = str(parse_value(text.strip(), keys))
        kind = kind_of_path(keys, value)
        # A model on the hub is a variant, as any other value.
        is_file = kind in ("file", "root") or (kind and Path(value).exists())
        if not is_file and keys[0] != "resources":
            varied.append(change)
    return varied
