"""The prompts that stand for an entity (paper, section 3.2.2): sets for videos and for images, from a file."""

import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

OFFICIAL = tomllib.loads(Path(__file__).with_name("templates.toml").read_text("utf-8"))


class Templates(BaseModel):
    """The prompts for an entity, by kind; the defaults are the official code's. `templates = "FILE"` at the top of a
    configuration reads both sets from a file of the form of `models/templates.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: tuple[str, ...] = Field(
        tuple(OFFICIAL["video"]), min_length=1, description="prompts for videos, {} is the entity"
    )
    image: tuple[str, ...] = Field(
        tuple(OFFICIAL["image"]), min_length=1, description="prompts for images, {} is the entity"
    )

    @field_validator("video", "image")
    @classmethod
    def _one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"{template!r} has {{}}, the place of the entity, {template.count('{}')} times, not once"
                )
        return templates

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The sets by the kind of sample that they are for."""
        return {"video": self.video, "image": self.image}

    def words(self) -> set[str]:
        """The words of all templates, lower-cased."""
        return set(re.findall(r"[^\W\d_]+", " ".join(self.video + self.image).lower()))


def fill(template: str, entity: str) -> str:
    """A prompt: the template with the entity in its place."""
    return template.replace("{}", entity)
