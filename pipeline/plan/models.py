"""Settings of a command on this machine, where the models that they name may be local folders, and
which of its changes make a variant."""

from pathlib import Path
from typing import Literal

from alpro.errors import InputError
from alpro.models.initial import read_sizes
from alpro.pipeline.config.command import Command
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
    """Give [model] the sizes of a CLIP (`vit`) or a BERT in a local folder, because others could not
    be loaded. Such a BERT is also the tokenizer, unless one is set.

    Pre-training decides, if both stages name a folder: later stages continue its model. An encoder
    that is a name on the hub has the sizes of the configuration.

    Args:
        values: values of a configuration that are not validated.
    """
    stages = [] if values.get("pretrained") else ["pretrain", "train_prompter"]
    for encoder, key in ENCODERS:
        for stage in stages:
            table = values.get(stage)
            name = table.get(key) if isinstance(table, dict) else None
            sizes = read_sizes(key, name) if isinstance(name, str) else {}
            if sizes:
                values = merge(values, {"model": {encoder: sizes}})
                if encoder == "text":
                    tokenizer = {"train_tokenizer": {"tokenizer": name}}
                    values = merge(tokenizer, values)
                break
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
