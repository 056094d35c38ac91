"""Steps of a pipeline: the digests of the user's files that a step reads, which steps have to run, and why."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from alpro.artifact import flatten, has_no_effect
from alpro.errors import InputError
from alpro.files import digest, read_json
from alpro.models.folder import read_task
from alpro.models.word_pieces import padded
from alpro.pipeline.config.pipeline_config import FILES, FILES_OR_NAMES, Corpus, PipelineConfig, is_word
from alpro.pipeline.plan.digests import Digests, digest_data, digest_model, digest_shards
from alpro.pipeline.plan.step import Step
from alpro.pipeline.store.artifacts import Store
from alpro.shards.storage import Location, located
from alpro.stages import EVALUATIONS
from alpro.stages.corpora.check_data import items_of_split
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig
from alpro.stages.index_shards import Config as IndexConfig


def with_files(step: Step, digests: Digests) -> Step:
    """A step with the digests of the models and files that it names; `missing` says why they cannot be read."""
    try:
        files = {name: digest_model(Path(folder), digests) for name, folder in step.paths.items()}
        for stage, key in (*FILES, *FILES_OR_NAMES):
            if stage != step.stage or not (value := getattr(step.config, key)) or is_word(stage, key, value):
                continue
            if (path := Path(value)).exists():
                files[f"{stage}.{key}"] = digest_files(path, digests)
            elif key == "tagger" and (version := package_version(value)):
                files[f"{stage}.{key}"] = f"{value} {version}"
            elif (stage, key) in FILES:
                raise InputError(f"{step.stage}.{key} = {value!r}: no such file")
    except InputError as error:
        return replace(step, missing=str(error))
    return replace(step, files=files)


def package_version(name: str) -> str:
    """The version of an installed package, such as a spaCy pipeline; empty if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def digest_files(path: Path, digests: Digests) -> str:
    """The digest of a file, or of the files in and below a folder: those of a spaCy pipeline lie in folders of their
    own. Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]
    files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    shown = {name: file for name, file in files.items() if not any(part.startswith(".") for part in Path(name).parts)}
    return digest(dict(zip(shown, digests.of(list(shown.values())), strict=True)))


def model_task(folder: Path) -> str:
    """The name of a model folder among the inputs of evaluate: its task."""
    try:
        task = read_task(folder)
    except ValueError as error:
        raise InputError(f"pretrained: {error}") from error
    if task == "prompter":
        raise InputError(f"pretrained: {folder} is a prompter; give a model of pre-training or fine-tuning")
    return "pretrained" if task == "pretrain" else task


def check_text_lengths(steps: list[Step], folder: Path) -> None:
    """Raises InputError if a step's texts are longer than the text encoder of `pretrained` takes."""
    limit = read_json(folder / "config.json").get("model", {}).get("text", {}).get("max_length")
    tables = {"zero_shot": "evaluate"}
    lengths = {
        f"{tables.get(step.stage, step.stage)}.max_text_tokens": getattr(step.config, "max_text_tokens", 0)
        for step in steps
    }
    if limit is not None and (long := [key for key, n in lengths.items() if padded(n) > limit]):
        raise InputError(
            f"{folder}: its text encoder takes {limit} tokens; "
            + " ".join(f"--set {key}={limit // 8 * 8}" for key in long)
        )


def decoding(name: str, corpus: Corpus, sample: Step | None, digests: Digests) -> Step:
    """The step that makes one corpus: of the rendered sample, of files whose contents are in its fingerprint, or of
    shards that are there already. `missing` says why the files cannot be read on this machine."""
    if corpus.manifest:
        assert sample is not None
        config = corpus.decoding
        return Step("decode_videos", f"decode_videos {name}", config, {"sample": sample})
    if corpus.shards:
        index = IndexConfig(kinds=corpus.kinds, max_reject_share=corpus.max_reject_share)
        step = Step("index_shards", f"index_shards {name}", index, paths={"shards": located(corpus.shards)})
    else:
        paths: dict[str, Location] = {"data": located(corpus.data), **corpus.annotation_files}
        paths |= {"root": corpus.names_root} if corpus.names_root else {}
        paths["manifests"] = digests.manifests
        step = Step("decode_videos", f"decode_videos {name}", corpus.decoding, paths=paths)
    try:
        return index_step(step, digests) if corpus.shards else decode_step(step, corpus, digests)
    except InputError as error:
        return replace(step, missing=str(error))


def index_step(step: Step, digests: Digests) -> Step:
    shards = step.paths["shards"]
    contents = digest_shards(shards, digests)
    return outside(step, {"shards": contents}, lambda: digest_shards(shards, digests) == contents)


def decode_step(step: Step, corpus: Corpus, digests: Digests) -> Step:
    data, annotations, root = step.paths["data"], corpus.annotation_files, corpus.names_root
    contents = digest_data(data, digests, annotations, root)
    return outside(
        step,
        {"data": contents.all},
        lambda: digest_data(data, digests, annotations, root, ask=False).here == contents.here,
    )


def outside(step: Step, files: Mapping[str, str], same: Callable[[], bool]) -> Step:
    """A step with the digests of the user's files. `same` is whether those of this machine are unchanged. A corpus at a
    URL is not checked again: a store may describe the same file differently each time."""

    def unchanged() -> bool:
        try:
            return same()
        except InputError:  # it cannot be read any more
            return False

    here = all(isinstance(path, Path) for path in step.paths.values())
    return replace(step, files=files, unchanged=unchanged if here else None)


def needed(steps: list[Step], stage: str) -> list[Step]:
    """The steps of one stage and everything that they depend on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        raise InputError(f"this configuration has no stage {stage}")
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


def check_files(steps: list[Step], store: Store) -> None:
    """Raises InputError if a step that has to run needs files that cannot be read on this machine."""
    for step in required(steps, store):
        if step.missing:
            raise InputError(step.missing)


def check_test_items(settings: PipelineConfig, steps: list[Step], store: Store) -> None:
    """Raises InputError, before anything is decoded, if a corpus that will be evaluated has no item to evaluate."""
    wanted = required(steps, store)
    for step in wanted:
        if step.stage not in EVALUATIONS or store.find(step):
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            corpus, decoded = settings.corpora[name], step.inputs[name]
            if not corpus.data or decoded not in wanted or store.find(decoded):
                continue
            files, cache = (corpus.annotation_files, corpus.names_root), Path(str(decoded.paths["manifests"]))
            counts, why = items_of_split(located(corpus.data), corpus.decoding, config.split, *files, cache)
            for column, task in TASKS.items():
                if getattr(config, task) == name and not counts[column]:
                    reason = f": {why}" if why else ""
                    raise InputError(
                        f"{name}: no {config.split} item has {column}{reason}; assign some in the column split, raise "
                        f"corpora.{name}.{config.split}, or set evaluate.{task} to an empty string"
                    )


def reason(step: Step, store: Store) -> str:
    """Why a step has to run: what differs from the most similar artifact of the same name."""
    others = [record for _, record in store.all() if record["name"] == step.name]
    if not others:
        return "no artifact yet"
    changes = [differences(record, step.description) for record in reversed(others)]  # the newest first
    fewest = min(changes, key=len)
    return ", ".join(fewest[:3]) + (f" and {len(fewest) - 3} more" if len(fewest) > 3 else "")


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
    old, new = record["inputs"], description["inputs"]
    changes += [f"input {name}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    old, new = record["files"], description["files"]
    changes += [f"files of {name}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return changes
