"""Pre-trained models of transformers, in a folder or on the hub: names, configuration, weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpro.errors import InputError, one_line
from alpro.models.timesformer import MAX_DEPTH
from alpro.models.weights import WEIGHTS, check_finite, find_weights

# What the text encoder computes and has no key for, by the names of transformers.
FIXED = {"bert": {"hidden_act": "gelu", "layer_norm_eps": 1e-12}}


@dataclass(frozen=True)
class HubName:
    """Name of a model on the hub: OWNER/MODEL or OWNER/MODEL@REVISION.

    >>> HubName.parse("openai/clip-vit-base-patch32@main")
    HubName(repository='openai/clip-vit-base-patch32', revision='main')
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str, needs_owner: bool = True) -> "HubName | None":
        """Parse a name. Return None if it is a folder, or no name of the hub.

        Args:
            needs_owner: If False, a name without owner is one of the hub, such as bert-base-uncased.
        """
        match = re.fullmatch(r"((?:\w[\w.-]*/)?\w[\w.-]*)(?:@(\w[\w./-]*))?", name)
        if (
            match is None
            or Path(name).is_dir()
            or (needs_owner and "/" not in match[1])
        ):
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return (
            f"{self.repository}@{self.revision}" if self.revision else self.repository
        )

    def snapshot(self, *patterns: str, local: bool = False) -> Path:
        """Return the folder of files in the hub's cache, and download them unless `local`."""
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.repository,
            revision=self.revision,
            allow_patterns=list(patterns),
            local_files_only=local,
        )
        return Path(folder)

    def cached(self) -> Path | None:
        """Return the folder in the hub's cache; None if it has no config.json."""
        try:
            folder = self.snapshot(local=True)
        except (OSError, ValueError):  # not in the cache; no name that the hub allows
            return None
        return folder if (folder / "config.json").is_file() else None

    def folder(self) -> Path:
        """Return the folder in the hub's cache, downloaded if it has no weights.

        Raises:
            InputError: If it cannot be downloaded. The message says how to get it by hand.
        """
        folder = self.cached()
        # An interrupted download leaves a folder without weights.
        if folder and find_weights(folder).is_file():
            return folder
        try:
            folder = self.snapshot("*.json", "*.txt", "*.model", WEIGHTS[0])
            if not find_weights(folder).is_file():  # such as the CLIPs of OpenAI
                folder = self.snapshot(WEIGHTS[1])
            return folder
        except Exception as error:
            # No network, no such model: each library raises its own type.
            raise InputError(
                f"{self}: no such folder or artifact, and it cannot be downloaded "
                f"({one_line(error)}); where there is a network: hf download "
                f"{self.repository} --revision {self.revision or 'main'} --local-dir FOLDER, and "
                "name the folder"
            ) from error


def read_model_config(key: str, name: str, types: tuple[str, ...]) -> Any:
    """Read the configuration of a model of transformers.

    Args:
        key: Configuration key of the name, for messages.
        name: A folder or a name on the hub, whose files are downloaded if they are not cached.
        types: Supported types of models. Relatives of BERT have other tokens, positions or layers.

    Returns:
        The configuration; `name_or_path` is the folder of the files.

    Raises:
        InputError: If it cannot be downloaded or read, or is another type of model, or a BERT with
            another activation or epsilon.
    """
    from transformers import AutoConfig

    hub_name = HubName.parse(name, needs_owner=False)
    folder = hub_name.folder() if hub_name else Path(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (
        Exception
    ) as error:  # no file, no JSON, an unknown type, a value of another type
        raise InputError(
            f"{key} = {name!r}: not readable as a {' or '.join(types)} of transformers "
            f"({one_line(error)})"
        ) from error
    if config.model_type not in types:
        raise InputError(
            f"{key} = {name!r}: this is a {config.model_type}, not a {' or '.join(types)}"
        )
    for setting, value in FIXED.get(config.model_type, {}).items():
        if getattr(config, setting) != value:
            raise InputError(f"{key} = {name!r}: its {setting} is not {value}")
    return config


def load_pretrained(config: Any) -> Any:
    """Load a CLIP or SigLIP by its configuration, of `read_model_config`.

    Raises:
        ValueError: If the weights do not fit the configuration, or are not finite. Also what
            transformers raises.
    """
    from transformers import AutoModel
    from transformers import logging as transformers_log

    # "Loading weights", also into files; and a table of the weights that the file has or lacks.
    transformers_log.disable_progress_bar()
    transformers_log.set_verbosity_error()
    config._attn_implementation = "sdpa"  # the files could name code from the hub

    file = find_weights(config.name_or_path)
    text_layers = config.text_config.num_hidden_layers
    if max(text_layers, config.vision_config.num_hidden_layers) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} layers")
    with torch.device("meta"):
        count = AutoModel.from_config(config).num_parameters()
    # transformers would take memory for all weights that are missing.
    if 2 * count > file.stat().st_size:  # a number has at least two bytes
        raise ValueError(
            f"config.json has {count} weights, more than {file.name} can have"
        )

    model, report = AutoModel.from_pretrained(
        file.parent,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    faults = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    # A configuration may have fewer layers than the weights.
    faults |= {key for key in report["unexpected_keys"] if ".layers." in key}
    if faults:
        raise ValueError(f"weights do not fit config.json, such as {min(faults)}")
    check_finite(model.state_dict(), file.parent)
    return model
