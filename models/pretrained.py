"""Pre-trained models of transformers, in a folder or on the hub: names, configuration, weights."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpro.errors import InputError, one_line
from alpro.models.timesformer import MAX_DEPTH
from alpro.models.weights import check_finite

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is loaded
# transformers logs a table of the weights that a file has or lacks. `load_pretrained` reports what
# is wrong.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)


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
        except OSError:  # not in the cache
            return None
        return folder if (folder / "config.json").is_file() else None

    def folder(self) -> Path:
        """Return the folder in the hub's cache, downloaded if it has no weights.

        Raises:
            InputError: If it cannot be downloaded. The message says how to get it by hand.
        """
        folder = self.cached()
        # An interrupted download leaves a folder without weights.
        if folder and any((folder / file).is_file() for file in WEIGHTS):
            return folder
        try:
            folder = self.snapshot("*.json", "*.txt", "*.model", WEIGHTS[0])
            if not (folder / WEIGHTS[0]).is_file():  # such as the CLIPs of OpenAI
                folder = self.snapshot(WEIGHTS[1])
            return folder
        except Exception as error:
            # No network, no such model: each library raises its own type.
            options = f" --revision {self.revision}" if self.revision else ""
            raise InputError(
                f"{self}: no such folder or artifact, and it cannot be downloaded "
                f"({one_line(error)}); where there is a network: hf download "
                f"{self.repository}{options} --local-dir FOLDER, and name the folder"
            ) from error


def read_model_config(name: str) -> Any:
    """Read the configuration of a model of transformers.

    Args:
        name: A folder or a name on the hub, whose files are downloaded if they are not cached.

    Returns:
        The configuration; `name_or_path` is the folder of the files.

    Raises:
        InputError: If the files cannot be downloaded.
        ValueError: If it has more layers than any model. Also what transformers raises.
    """
    from transformers import AutoConfig

    hub_name = HubName.parse(name, needs_owner=False)
    config = AutoConfig.from_pretrained(hub_name.folder() if hub_name else name)
    # Check the towers as well: the files could name code from the hub.
    config._attn_implementation = "sdpa"

    # A BERT has no towers.
    for tower in ("text_config", "vision_config"):
        layers = getattr(getattr(config, tower, config), "num_hidden_layers", 0)
        if layers > MAX_DEPTH:
            raise ValueError(
                f"config.json has {layers} layers; at most {MAX_DEPTH} are built"
            )
    return config


def load_pretrained(kind: Any, config: Any) -> tuple[Any, set[str]]:
    """Load a model of transformers.

    Args:
        kind: Class of transformers that loads it.
        config: Its configuration, of `read_model_config`.

    Returns:
        The model, and the names of the weights of its head that the file lacks, which are random.

    Raises:
        ValueError: If the weights do not fit the configuration, or are not finite. Also what
            transformers raises.
    """
    from transformers import logging as transformers_log

    transformers_log.disable_progress_bar()  # "Loading weights", also into files

    folder = Path(config.name_or_path)
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise ValueError(f"no {' and no '.join(WEIGHTS)}")
    check_size(files[0], kind, config)

    model, report = kind.from_pretrained(
        folder,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # The head may be missing, such as the MLM head of a BERT; the body may not.
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    random = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    missing = sorted(key for key in random if key.startswith(body))
    if missing:
        raise ValueError(
            f"weights are missing or of another shape, such as {missing[0]}"
        )
    unused = sorted(
        key for key in report["unexpected_keys"] if re.search(r"layers?\.\d+\.", key)
    )
    if unused:
        raise ValueError(f"config.json has fewer layers than the weights: {unused[0]}")

    check_finite(model.state_dict(), folder)
    return model, random


def check_size(file: Path, kind: Any, config: Any) -> None:
    """Raise ValueError if a file is too small for the weights of a configuration.

    transformers would take memory for all that are missing.
    """
    with torch.device("meta"):
        model = kind.from_config(config).base_model
    weights = sum(parameter.numel() for parameter in model.parameters())
    if 2 * weights > file.stat().st_size:  # a number has at least two bytes
        raise ValueError(
            f"config.json has {weights} weights, more than {file.name} can have"
        )
