"""Prompt templates for entities (paper, section 3.2.2), one set for videos and one for images."""

import re
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

OFFICIAL = tomllib.loads(Path(__file__).with_name("templates.toml").read_text("utf-8"))


class Templates(BaseModel):
    """Prompt templates for entities by kind of sample, by default those of the official code.
    `templates = "FILE"` at the top of a configuration reads them from a file such as `models/templates.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: tuple[str, ...] = Field(
        tuple(OFFICIAL["video"]), min_length=1, description="templates for videos; {} is replaced by the entity"
    )
    image: tuple[str, ...] = Field(
        tuple(OFFICIAL["image"]), min_length=1, description="templates for images; {} is replaced by the entity"
    )

    @field_validator("video", "image")
    @classmethod
    def _one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(
                    f"{template!r} must contain {{}}, which is replaced by the entity, exactly once, not "
                    f"{template.count('{}')} times"
                )
        return templates

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The templates for entities by kind of sample."""
        return {"video": self.video, "image": self.image}

    def words(self) -> set[str]:
        """All words of the templates, in lower case."""
        return set(re.findall(r"[^\W\d_]+", " ".join(self.video + self.image).lower()))


def fill(template: str, word: str) -> str:
    """The template with {} replaced by an entity."""
    return template.replace("{}", word)
