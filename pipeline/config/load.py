"""Loads the configuration of a command."""

from pydantic import ValidationError

from alpro.errors import InputError
from alpro.pipeline.config.command import Command, changed_key
from alpro.pipeline.config.fields import error_key, error_line
from alpro.pipeline.config.layers import (
    CONFIGS,
    Values,
    apply_change,
    find_config,
    read_config,
    shipped,
)
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.config.tables import covers

__all__ = ["CONFIGS", "load_config", "shipped"]


def load_config(command: Command) -> PipelineConfig:
    """Load a TOML file, or a shipped configuration by name, with changes such as
    `pretrain.lr=1e-4`.

    Only TOML files are read. `read_settings` of the plan also looks at models and this machine.

    Raises:
        InputError: A value is invalid. The message is one line.
    """
    return validate(read_values(command), command)


def read_values(command: Command) -> Values:
    """Read the file of a command, over its base, and apply the changes."""
    values = read_config(find_config(command.config))
    for change in command.changes:
        apply_change(values, change)
    return values


def validate(values: Values, command: Command) -> PipelineConfig:
    """Make a configuration of the values of a command."""
    changed = [changed_key(change) for change in command.changes]
    try:
        settings = PipelineConfig.model_validate(values)
    except ValidationError as error:
        # The message names where the value was set: in a change, or else in the file.
        key = error_key(error.errors()[0])
        is_changed = any(covers(one, key) for one in changed)
        place = "" if is_changed else f"{find_config(command.config)}: "
        raise InputError(f"{place}{error_line(error, PipelineConfig)}") from error

    check_corpora(settings, command)
    return settings.limited()


def check_corpora(settings: PipelineConfig, command: Command) -> None:
    """Raise InputError if a change names a corpus that the file lacks and that no stage reads, such
    as `--data` for a configuration whose corpora have other names."""
    keys = [changed_key(change).split(".") for change in command.changes]
    changed = {parts[1] for parts in keys if parts[0] == "corpora" and len(parts) > 1}
    unused = changed - settings.used_corpora
    if not unused:
        return

    names = read_config(find_config(command.config)).get("corpora", {})
    for name in sorted(unused - set(names)):
        options = " or ".join(f"corpora.{one}.data" for one in names)
        raise InputError(
            f"corpora.{name}: no stage of {command.config_name} reads this corpus; set {options}"
        )
