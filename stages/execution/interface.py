"""What stages share with those who run them: configuration, resources, outcome, errors and exit
statuses."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from alpro.errors import Failure
from alpro.shards.storage import Location
from alpro.threads import cores

EXIT_INPUT_ERROR = 2  # exit status of an error that the user can fix
# Exit status (EX_TEMPFAIL) of a training that was stopped, with a checkpoint.
EXIT_STOPPED = 75
WORK_FILE = "work.json"  # what the processes of a stage read
RESULT_FILE = "result.json"  # what they leave beside it


class StageFailed(Failure):
    """A stage's processes ended without a result.

    Attributes:
        progressed: whether they left more finished work than they began with.
    """

    def __init__(self, message: str, progressed: bool = False):
        super().__init__(message)
        self.progressed = progressed


# `json_schema_extra` of keys whose value is a path: of a file that must exist, or of one that may
# also be a name on the hub.
FILE: JsonDict = {"path": "file"}
FILE_OR_NAME: JsonDict = {"path": "file or name"}


def file_or_word(*words: str) -> JsonDict:
    """Return FILE_OR_NAME for a key whose value may also be one of `words`, which are never
    paths."""
    return {**FILE_OR_NAME, "words": [*words]}


# `json_schema_extra` of keys that no result depends on, such as `log_every`.
NO_EFFECT: JsonDict = {"effect": False}


def path_kind(field: FieldInfo | None, value: str) -> str:
    """Return the kind of path that a value of a field is: file, or file or name; empty if it is
    none, or if there is no such field."""
    extra: Any = (field and field.json_schema_extra) or {}
    return "" if value in extra.get("words", ()) else extra.get("path", "")


# Types of keys: a number of objects, a fraction, and paths.
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[str, Field(json_schema_extra=FILE)]
FileOrName = Annotated[str, Field(json_schema_extra=FILE_OR_NAME)]


class StageConfig(
    BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True
):
    """Base of every stage's configuration: frozen, unknown keys are errors. The text below a key is
    its description in docs/configuration.md.

    Subclasses say `frozen=True` as well: they inherit it when they run, but type checkers read it
    from each class. It lets a subclass narrow the type of a field.
    """

    @property
    def path_values(self) -> dict[str, tuple[str, str]]:
        """The values that are paths, or names on the hub, with their `path_kind`, by key."""
        values = {}
        for key, described in type(self).model_fields.items():
            value = getattr(self, key)
            kind = path_kind(described, value) if value else ""
            if kind:
                values[key] = value, kind
        return values

    @classmethod
    def without_effect(cls, values: Mapping[str, Any]) -> set[str]:
        """Return the keys that the result does not depend on. They are not in the fingerprint.

        Args:
            values: A configuration as an artifact's record has it.
        """
        return {
            name
            for name, described in cls.model_fields.items()
            if described.json_schema_extra == NO_EFFECT
        }


Corpora = Mapping[str, Path]  # folders of decoded corpora by name


class StageInputs(BaseModel):
    """Base of every stage's inputs: frozen, a folder for each name. A stage that reads corpora has
    a field `corpora`, their folders by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, locations: Mapping[str, Location]) -> Self:
        """Build the inputs from locations by name, as a work file has them. A name that is no field
        is the name of a corpus."""
        values: dict[str, Any] = dict(locations)
        if "corpora" in cls.model_fields:
            corpora = locations.keys() - (cls.model_fields.keys() - {"corpora"})
            values["corpora"] = {name: values.pop(name) for name in sorted(corpora)}
        return cls.model_validate(values)


class Resources(StageConfig, frozen=True):
    """How work is distributed and where it runs. It is not part of fingerprints: results change
    only by dropout, stochastic depth and rounding."""

    workers: NonNegativeInt = 0
    """processes that decode and load data; 0: one per core"""
    scheduler: str = ""
    """address of a Dask scheduler, tcp://HOST:8786, whose workers decode, index and tag; empty:
    `workers` of this machine"""
    processes: Count = 1
    """processes on this machine that share a training or an evaluation (torchrun)"""
    max_stages: Count = 1
    """stages that run at the same time; each has its own GPUs, and on a CPU they share the cores"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one"""
    checkpoint_activations: bool = False
    """repeat forward passes: less memory, more time"""
    compile: bool = True
    """torch.compile the encoders' layers for training, on a GPU and from width 512 on"""
    nodes: Count = 1
    """machines that train together, each with `processes`"""
    rendezvous: str = ""
    """host:port of this machine, which the other nodes connect to"""
    rank_timeout: PositiveFloat = 600.0
    """seconds that training processes wait for each other"""
    checkpoint_interval: PositiveFloat = 600.0
    """seconds between checkpoints of a training"""

    @model_validator(mode="after")
    def _check_rendezvous(self) -> "Resources":
        if self.nodes > 1 and ":" not in self.rendezvous:
            raise ValueError(f"{self.nodes} nodes need a rendezvous, host:port")
        return self

    @property
    def worker_count(self) -> int:
        return self.workers or cores()


Metrics = dict[str, float]  # values by name


@dataclass
class Outcome:
    """The result of a stage.

    Attributes:
        counts: Numbers of items that it read and dropped.
        metrics: Final metrics.
        warnings: Lines on limits of the result, for the end of the run and its report.
        precision: Compute dtype of the models; empty without a model.
        sha256: Checksums of files in its folder that the stage has computed, by name. These files
            are not read again.
    """

    counts: dict[str, int] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    precision: str = ""
    sha256: dict[str, str] = field(default_factory=dict)


# File in the folder of a running stage, with the key of each finished unit on a line.
FINISHED_UNITS = "parts/units"


def count_finished(out: Path) -> int:
    """Count the finished work in the folder of a stage: steps in its newest checkpoint, and units.

    A stage that died runs again only if this number has grown.
    """
    steps = [
        int(folder.name.removeprefix("step-"))
        for folder in out.glob("checkpoints/step-*")
    ]
    return max(steps, default=0) + len(finished_units(out))


def finished_units(out: Path) -> set[str]:
    """Return the keys of the units that a running stage has finished."""
    # A unit that the stage found again has a second line.
    with suppress(FileNotFoundError):
        return {*(out / FINISHED_UNITS).read_text().splitlines()}
    return set()
