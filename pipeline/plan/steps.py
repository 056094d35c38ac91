"""Steps of a configuration, with their inputs and the digests of outside files."""

from contextlib import suppress
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path

from alpro.errors import InputError
from alpro.files import digest
from alpro.models.clip_prompter import check_clip
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.corpora import corpus_steps, without_questions
from alpro.pipeline.plan.digests import Digests, digest_model
from alpro.pipeline.store.artifacts import Step
from alpro.stages import CORPUS_STAGES, STAGES
from alpro.stages.execution.interface import FILE_OR_NAME, Needs, path_kind


def build_steps(settings: PipelineConfig, digests: Digests) -> tuple[PipelineConfig, list[Step]]:
    """Return the steps of a configuration in an order in which they can run: a step for each
    corpus, and for each stage that the configuration asks for, with the inputs that the stage's
    `needs` names.

    Returns:
        The configuration without what the data has nothing for, and its steps.
    """
    built: dict[str, Step] = {}  # by stage
    corpora: dict[str, Step] = {}
    steps: list[Step] = []
    for stage in STAGES:
        if stage in CORPUS_STAGES:
            # Two stages make corpora. The first of them in the list plans both.
            if not corpora:
                corpora = corpus_steps(settings, built.get("render_sample"), digests)
                settings = without_questions(settings, corpora)
                steps += corpora.values()
            continue

        needs: Needs | None = import_module(f"alpro.stages.{stage}").needs(settings)
        if needs is None:
            continue
        inputs = {name: built[source] for name, source in needs.stages.items() if source in built}
        inputs |= {name: corpora[name] for name in needs.corpora}
        step = Step(stage, stage, needs.config, inputs, given=needs.folders)
        built[stage] = with_digests(step, digests)
        steps.append(built[stage])
    return settings, steps


def with_digests(step: Step, digests: Digests) -> Step:
    """Return a step with the digests of the models and files that it names; its `unreadable` says
    why they cannot be read."""
    try:
        files = {name: digest_model(Path(folder), digests) for name, folder in step.given.items()}
        for key in type(step.config).model_fields:
            files |= digest_value(step, key, digests)
    except InputError as error:
        return replace(step, unreadable=str(error))
    return replace(step, digests=files)


def digest_value(step: Step, key: str, digests: Digests) -> dict[str, str]:
    """Return the digest of the file, folder or package that a key of a step names, by STAGE.KEY;
    empty for any other value, and for a name on the hub.

    Raises:
        InputError: A file that must exist does not, or a CLIP cannot be used.
    """
    value = getattr(step.config, key)
    kind = path_kind(type(step.config).model_fields[key], value) if value else ""
    if not kind:
        return {}

    name = f"{step.stage}.{key}"
    path = Path(value)
    files = {}
    if path.exists():
        files[name] = digest_files(path, digests)
    elif key == "tagger":  # perhaps an installed package, such as a spaCy pipeline
        with suppress(metadata.PackageNotFoundError):
            files[name] = f"{value} {metadata.version(value)}"
    elif kind != FILE_OR_NAME["path"] or value.startswith((".", "/", "~")):
        raise InputError(f"{name} = {value!r}: no such file or folder")

    if key in ("clip", "prompter"):
        # Now, rather than after the videos are decoded.
        check_clip(value, name, getattr(step.config, "max_text_tokens", 0))
    return files


def digest_files(path: Path, digests: Digests) -> str:
    """Return the digest of a file, or of the files in and below a folder, such as a spaCy pipeline.
    Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]

    files: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not is_hidden:
            files[str(name)] = file
    return digest(dict(zip(files, digests.of(list(files.values())), strict=True)))
