"""Study files: variants of a configuration, the seeds to run each with, and the scores to compare."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from alpro.artifact import flatten
from alpro.errors import InputError
from alpro.pipeline.config.errors import one_line
from alpro.pipeline.config.pipeline_config import CONFIGS, STAGE_CONFIGS, PipelineConfig, read_toml
from alpro.shards.storage import absolute
from alpro.stages import STAGES

STUDIES = CONFIGS / "studies"
SCORES = ("zero_shot/t2v/R1", "zero_shot_vtc/t2v/R1", "retrieval/t2v/R1", "qa/acc", "entities/acc")
SEEDED = tuple(stage for stage, config in STAGE_CONFIGS.items() if "seed" in config.model_fields)


def as_changes(value: Any) -> Any:
    """A table, nested or with dotted keys, as the changes of `--set`; a list of changes as it is.

    >>> as_changes({"pretrain": {"lr": 0.001}, "templates.video": ["A film of a {}."]})
    ['pretrain.lr=0.001', 'templates.video=["A film of a {}."]']
    """
    if not isinstance(value, dict):
        return value
    try:
        return [f"{key}={json.dumps(item, ensure_ascii=False)}" for key, item in flatten(value).items()]
    except TypeError as error:
        raise ValueError(f"a value is not a text, a number, true, false or a list of these: {error}") from error


Changes = Annotated[tuple[str, ...], BeforeValidator(as_changes)]


class Variant(BaseModel):
    """A variant of the study's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="name in the table, the plot and MLflow")
    changes: Changes = Field(
        (), alias="set", description='changes of this variant: a list such as `["pretrain.lr=1e-4"]`, or a table'
    )
    base: str = Field("", description="the variant that this one is compared with; default: the first")


class Study(BaseModel):
    """A study. The first variant is the base, which the others are compared with unless they name another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        "", pattern=r"^[\w-]*$", description="name of the experiment in MLflow; default: the name of the file"
    )
    config: str = Field(
        "sample", description="the configuration, as for `--config`; the path of a file is relative to the study file"
    )
    changes: Changes = Field((), alias="set", description="changes of all variants, as those of a variant")
    until: str = Field("", description="last stage to run, such as `zero_shot`; default: the whole pipeline")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2), min_length=1, description="the seeds; every variant runs with each"
    )
    seed_stages: tuple[str, ...] = Field(
        SEEDED,
        description="stages whose seed varies; default: all that have one. Without `render_sample`, all runs have the "
        "same corpus",
    )
    scores: tuple[str, ...] = Field(
        SCORES,
        min_length=1,
        description="scores of the printed table and the plot: names of rows of `results.json`, `*` matches any "
        "characters",
    )
    variants: tuple[Variant, ...] = Field((Variant(name="base"),), min_length=1, description="the variants")

    @field_validator("variants", "seeds")
    @classmethod
    def _distinct(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name if isinstance(item, Variant) else item for item in items]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
        return items

    @field_validator("variants")
    @classmethod
    def _known_bases(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        names = [variant.name for variant in variants]
        for variant in variants:
            if variant.base and (variant.base not in names or variant.base == variant.name):
                raise ValueError(
                    f"{variant.name!r} has base {variant.base!r}, which is not another variant of the study"
                )
        return variants

    @field_validator("until", "seed_stages")
    @classmethod
    def _known_stages(cls, value: Any, info: Any) -> Any:
        known = STAGES if info.field_name == "until" else SEEDED
        for stage in [value] if isinstance(value, str) else value:
            if stage and stage not in known:
                raise ValueError(f"no stage {stage!r}; the stages are {', '.join(known)}")
        return value

    def bases(self) -> dict[str, str]:
        """The base of each variant that has one. A variant that is the base of others has none, nor has the first."""
        first, named = self.variants[0].name, {variant.base for variant in self.variants}
        return {
            variant.name: variant.base or first
            for variant in self.variants
            if variant.base or variant.name not in {first, *named}
        }

    def selects(self, score: str) -> bool:
        """Whether a score is in the printed table and the plot."""
        return any(fnmatchcase(score, pattern) for pattern in self.scores)

    def seed_changes(self, config: PipelineConfig, seed: int) -> list[str]:
        """The changes that set the seed of every stage that the pipeline has and whose seed varies."""
        stages = [stage for stage in self.seed_stages if getattr(config, stage) is not None]
        return [f"{stage}.seed={seed}" for stage in stages]


def load_study(source: str) -> Study:
    """Loads a study from a TOML file, or a shipped one by name. Raises InputError if it is invalid."""
    path = find_study(source)
    values = read_toml(path)
    if isinstance(values.get("config"), str):
        parts = values["config"].split("+")
        values["config"] = "+".join(str(absolute(p, path.parent)) if p.endswith(".toml") else p for p in parts)
    try:
        study = Study.model_validate(values)
        return study if study.name else Study.model_validate(values | {"name": path.stem})
    except ValidationError as error:
        raise InputError(f"{path}: {one_line(error, Study)}") from error


def find_study(source: str) -> Path:
    """A study file by path, or a shipped one by name."""
    path = absolute(source)
    if isinstance(path, Path) and path.is_file():
        return path
    if source in shipped_studies():
        return STUDIES / f"{source}.toml"
    raise InputError(f"{source}: neither a file nor a shipped study; those are {', '.join(shipped_studies())}")


def shipped_studies() -> list[str]:
    """Names of the shipped studies."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))
