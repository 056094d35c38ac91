"""The DAG of a configuration: its steps with their inputs and outside files; which of them have to run, and why."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

from alpro.artifact import flatten, has_no_effect
from alpro.errors import InputError
from alpro.files import digest, read_json
from alpro.models.clip_prompter import check_clip
from alpro.models.word_pieces import padded
from alpro.names import config_name
from alpro.pipeline.config.load import load_config
from alpro.pipeline.config.pipeline_config import (
    FILES,
    FILES_OR_NAMES,
    TABLE_OF,
    PipelineConfig,
    is_word,
)
from alpro.pipeline.plan.check_data import check_answers, items_of_split
from alpro.pipeline.plan.corpora import corpus_steps
from alpro.pipeline.plan.digests import Digests, digest_model
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.sources.manifest import Manifest, has_questions
from alpro.stages import CORPUS_STAGES, EVALUATIONS, STAGES
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig, check_items
from alpro.stages.execution.interface import Needs


class Planned(NamedTuple):
    """A configuration, its steps in order, and the store of the workspace."""

    settings: PipelineConfig
    steps: list[Step]
    store: Store


def planned(stage: str, config: str, data: str, changes: list[str] | None, root: Path) -> Planned:
    """The plan of one stage or, for "", of the whole pipeline, in a workspace. Raises InputError for anything wrong."""
    root.mkdir(parents=True, exist_ok=True)
    digests = Digests(root / "digests.sqlite")
    settings = load_config(
        config, data, changes, lambda location: has_questions(location, digests.manifests)
    )
    steps = plan(settings, digests)
    steps = needed(steps, stage) if stage else steps
    if settings.pretrained:
        check_text_lengths(steps, Path(settings.pretrained))
    return Planned(settings, steps, Store(root / "artifacts"))


def plan(config: PipelineConfig, digests: Digests) -> list[Step]:
    """The DAG, in an order in which it can run: a step for each corpus, and for each stage that the configuration asks
    for, with the inputs that the stage's `needs` names."""
    built: dict[str, Step] = {}  # by stage
    corpora: dict[str, Step] = {}
    steps: list[Step] = []
    for stage in STAGES:
        if stage in CORPUS_STAGES:
            if not corpora:
                corpora = corpus_steps(config.corpora, built, digests)
                steps += corpora.values()
            continue
        needs: Needs | None = import_module(f"alpro.stages.{stage}").needs(config)
        if needs is None:
            continue

        inputs = {name: built[source] for name, source in needs.stages.items() if source in built}
        inputs |= {name: corpora[name] for name in needs.corpora}
        step = Step(stage, stage, needs.config, inputs, paths=needs.folders)
        built[stage] = with_files(step, digests)
        steps.append(built[stage])
    return steps


def with_files(step: Step, digests: Digests) -> Step:
    """A step with the digests of the models and files that it names; `missing` says why they cannot be read."""
    try:
        files = {name: digest_model(Path(folder), digests) for name, folder in step.paths.items()}
        for stage, key in (*FILES, *FILES_OR_NAMES):
            if (
                stage != step.stage
                or not (value := getattr(step.config, key))
                or is_word(stage, key, value)
            ):
                continue
            if (path := Path(value)).exists():
                files[f"{stage}.{key}"] = digest_files(path, digests)
            elif key == "tagger":  # perhaps an installed package, such as a spaCy pipeline
                with suppress(metadata.PackageNotFoundError):
                    files[f"{stage}.{key}"] = f"{value} {metadata.version(value)}"
            elif (stage, key) in FILES or value.startswith((".", "/", "~")):
                raise InputError(f"{stage}.{key} = {value!r}: no such file or folder")
            if key in ("clip", "prompter"):
                check_clip(value, f"{stage}.{key}", getattr(step.config, "max_text_tokens", 0))
    except InputError as error:
        return replace(step, missing=str(error))
    return replace(step, files=files)


def digest_files(path: Path, digests: Digests) -> str:
    """The digest of a file, or of the files in and below a folder: those of a spaCy pipeline lie in folders of their
    own. Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]
    files = {
        str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()
    }
    shown = {
        name: file
        for name, file in files.items()
        if not any(part.startswith(".") for part in Path(name).parts)
    }
    return digest(dict(zip(shown, digests.of(list(shown.values())), strict=True)))


def check_text_lengths(steps: list[Step], folder: Path) -> None:
    """Raises InputError if a step's texts are longer than the text encoder of `pretrained` takes."""
    limit = read_json(folder / "config.json").get("model", {}).get("text", {}).get("max_length")
    lengths = {
        TABLE_OF.get(step.stage, step.stage): getattr(step.config, "max_text_tokens", 0)
        for step in steps
    }
    if limit is not None and (long := [stage for stage, n in lengths.items() if padded(n) > limit]):
        changes = " ".join(f"--set {stage}.max_text_tokens={limit // 8 * 8}" for stage in long)
        raise InputError(f"{folder}: its text encoder takes {limit} tokens; {changes}")


def check_files(steps: list[Step], store: Store) -> None:
    """Raises InputError if a step that has to run needs files that cannot be read on this machine."""
    for step in required(steps, store):
        if step.missing:
            raise InputError(step.missing)


def check_test_items(plan: Planned) -> None:
    """Raises InputError if a corpus that will be evaluated has no item to evaluate: a decoded one as the evaluation
    will, before days of training; another one by its manifest, before it is decoded."""
    settings, steps, store = plan
    for step in required(steps, store):
        if step.stage not in EVALUATIONS or store.find(step):
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            corpus, decoded = settings.corpora[name], step.inputs[name]
            if store.find(decoded):
                check_items(config, name, store.folder(decoded))
                continue
            if "manifest" not in decoded.paths:
                continue
            manifest = Manifest(Path(decoded.paths["manifest"]))
            counts, why = items_of_split(manifest, corpus.decoding, config.split)
            answering = settings.finetune_qa
            if answering and set(answering.corpora) == {name} and not answering.answers_file:
                check_answers(manifest, corpus.decoding, name)
            for column, task in TASKS.items():
                if getattr(config, task) == name and not counts[column]:
                    reason = f": {why}" if why else ""
                    raise InputError(
                        f"{name}: no {config.split} item has {column}{reason}; assign some in the column split, raise "
                        f"corpora.{name}.{config.split}, or set evaluate.{task} to an empty string"
                    )


def needed(steps: list[Step], stage: str) -> list[Step]:
    """The steps of one stage and everything that they depend on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        raise InputError(
            f"no stage {stage!r}; this configuration has {', '.join({s.stage: s for s in steps})}"
        )
    for step in reversed(steps):
        if step.fingerprint in wanted:
            wanted |= {other.fingerprint for other in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted]


def required(steps: list[Step], store: Store) -> list[Step]:
    """The steps whose artifacts exist or have to be built, in order.

    An input is built only for a step that runs: if decoded shards were deleted but everything that was computed from
    them exists, nothing is decoded again.
    """
    inputs = {other.fingerprint for step in steps for other in step.inputs.values()}
    exists = {step.fingerprint: bool(store.find(step)) for step in steps}
    wanted = {step.fingerprint for step in steps if step.fingerprint not in inputs}
    for step in reversed(steps):
        if step.fingerprint in wanted and not exists[step.fingerprint]:
            wanted |= {other.fingerprint for other in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted or exists[step.fingerprint]]


def reason(step: Step, store: Store, config: str = "") -> str:
    """Why a step has to run: what differs from the most similar artifact of the same name, and of the same
    configuration if one is given, by its name or file."""
    others = [record for _, record in store.all() if record["name"] == step.name]
    if config:
        others = [record for record in others if made_with(record, config)]
    if not others:
        return "no artifact of this configuration yet" if config else "no artifact yet"
    fewest = min(
        (differences(record, step.description) for record in reversed(others)), key=len
    )  # the newest first
    return ", ".join(fewest[:3]) + (f" and {len(fewest) - 3} more" if len(fewest) > 3 else "")


def made_with(record: Mapping[str, Any], config: str) -> bool:
    """Whether the command that built an artifact named this configuration. A record without a command fits all."""
    named = (record["run"].get("arguments") or {}).get("config", config)
    return config_name(named) == config_name(config)


def differences(record: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """What differs between an artifact's record and a step's description, of all that decides the fingerprint."""
    changes = []
    if record["stage_version"] != description["stage_version"]:
        changes.append("the stage's code has a new version")
    files = record["files"].keys() & description["files"].keys()
    old, new = (flatten(one["config"], f"{one['stage']}.") for one in (record, description))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in files and not has_no_effect(key):
            changes.append(f"{key} = {new.get(key)!r} (was {old.get(key)!r})")
    for what, kind in (("input", "inputs"), ("files of", "files")):
        old, new = record[kind], description[kind]
        changes += [
            f"{what} {name}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return changes
