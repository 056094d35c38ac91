"""The types of options that several commands share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from alpro.files import expand_home
from alpro.inference.names import find_artifact

if TYPE_CHECKING:
    from alpro import Model
    from alpro.inference.loading import Found
    from alpro.pipeline.config.command import Command
    from alpro.shards.storage import Location


def user_path(kind: Any, tokens: Sequence[Token]) -> Path:
    """Return a path from the command line. `~` is the home folder, also if the shell does not expand it
    (--out=~/x)."""
    return expand_home(tokens[0].value)


File = Annotated[Path, Parameter(converter=user_path)]
Workspace = Annotated[
    File,
    Parameter(
        help="Folder of the artifacts, the reports and the MLflow store; $ALPRO_WORKSPACE is the "
        "default if it is set."
    ),
]
TrackingUri = Annotated[
    str, Parameter(help="An MLflow server; by default a file in the workspace.")
]
Port = Annotated[int, Parameter(validator=Number(gte=1, lte=65535))]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
WORKSPACE = Path(os.environ.get("ALPRO_WORKSPACE") or "workspace")
ARTIFACT = (
    "A stage (what the last `alpro run` built or found for it), CONFIG/STAGE (the last run of a "
    "configuration without --set), a fingerprint as `alpro artifacts ls` prints it or its first characters, "
    "or a folder."
)
MODEL = (
    "A model folder, a CLIP or SigLIP of the hub (openai/clip-vit-base-patch16), "
    "models:/NAME@ALIAS of the registry, "
    f"or an artifact: {ARTIFACT[0].lower()}{ARTIFACT[1:]}"
)
Artifact = Annotated[str, Parameter(help=ARTIFACT)]
Named = Annotated[str, Parameter(help=MODEL)]


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """The options that change a configuration."""

    data: str = ""
    "Your videos (a folder, a manifest or a URL), in place of the configuration's corpora."
    pretrained: str = ""
    "Start from this model, a folder or an artifact, in place of the configuration's prompter and pre-training."
    set: tuple[str, ...] = ()
    "Change a value (pretrain.lr=1e-4), leave out a stage (finetune_qa=false), try few steps (max_steps=9); repeatable."

    def command(self, config: str, workspace: Path, stage: str = "") -> "Command":
        """Return the command of a configuration with these options as changes."""
        from alpro.pipeline.config.command import DATA, Command, text_change

        changes = []
        if self.pretrained:
            from alpro.inference.loading import resolve
            from alpro.models.folder import model_folder

            model = model_folder(resolve(self.pretrained, workspace).model)
            changes.append(text_change("pretrained", str(model.resolve())))
        if self.data:
            changes.append(text_change(DATA, self.data))
        return Command(config, (*changes, *self.set), stage)


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """The options of the commands that run a model: where it is looked up, and how it is loaded."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Auto: the GPU if there is one."
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    "Precision of the encoders; auto: bfloat16 if this machine computes it faster."
    workspace: Workspace = WORKSPACE
    tracking_uri: TrackingUri = ""

    def find(self, name: str) -> "Found":
        """Return the model that a name stands for. Raise InputError if there is none."""
        from alpro.inference.loading import resolve

        model: str | Path = name
        if name.startswith("models:/"):
            from alpro.pipeline.tracking.registry import registered_folder

            model = registered_folder(self.tracking_uri, self.workspace.resolve(), name)
        return resolve(model, self.workspace)

    def load(self, found: "Found") -> "Model":
        from alpro import Model

        return Model.load(found, device=self.device, dtype=self.dtype)

    def videos(self, name: str) -> "Location":
        """Resolve a video location from the command line: a file or folder, a URL, or a decoded
        corpus of the workspace. Raises InputError if there is no such thing."""
        from alpro.shards.storage import absolute

        videos = absolute(name)
        if not isinstance(videos, Path) or videos.exists():
            return videos

        folder, _ = find_artifact(name, self.workspace)
        return folder


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """The options of the commands that run stages."""

    dry_run: bool = False
    "Only print which stages would run, and which are cached."
    workspace: Workspace = WORKSPACE
    tracking_uri: TrackingUri = ""
