"""The DAG of a configuration: its steps with their inputs and outside files; which of them have to
run, and why."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import cast

from alpro.artifact import Record
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
from alpro.pipeline.plan.difference import Difference, differences, recipe, shorten
from alpro.pipeline.plan.digests import Digests, digest_model
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.sources.manifest import Manifest, has_questions
from alpro.shards.storage import Location
from alpro.stages import CORPUS_STAGES, EVALUATIONS, STAGES
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig, check_items
from alpro.stages.execution.interface import Needs


@dataclass(frozen=True)
class Planned:
    """A configuration, its steps in order, and the store of the workspace."""

    settings: PipelineConfig
    steps: list[Step]
    store: Store
    # The pairs of an evaluation and a corpus that `check_test_items` has accepted, and whether the
    # corpus was decoded then. It is called before a run and before each of its steps.
    checked: set[tuple[str, str, bool]] = field(default_factory=set)


def planned(stage: str, config: str, data: str, changes: list[str] | None, root: Path) -> Planned:
    """The plan of one stage or, for "", of the whole pipeline, in a workspace. Raises InputError
    for anything wrong."""
    root.mkdir(parents=True, exist_ok=True)
    digests = Digests(root / "digests.sqlite")

    def asks_questions(location: Location) -> bool:
        # Imported into the folder where the steps look for the same manifest.
        return has_questions(location, digests.manifests)

    settings = load_config(config, data, changes, asks_questions)

    steps = plan(settings, digests)
    if stage:
        steps = needed(steps, stage)
    if settings.pretrained:
        check_text_lengths(steps, Path(settings.pretrained))
    return Planned(settings, steps, Store(root / "artifacts"))


def plan(config: PipelineConfig, digests: Digests) -> list[Step]:
    """The DAG, in an order in which it can run: a step for each corpus, and for each stage that the
    configuration asks for, with the inputs that the stage's `needs` names."""
    built: dict[str, Step] = {}  # by stage
    corpora: dict[str, Step] = {}
    steps: list[Step] = []
    for stage in STAGES:
        if stage in CORPUS_STAGES:
            # Two stages make corpora; the first of them in the list plans those of both.
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
    """A step with the digests of the models and files that it names; `missing` says why they cannot
    be read."""
    try:
        files = {name: digest_model(Path(folder), digests) for name, folder in step.paths.items()}
        for stage, key in (*FILES, *FILES_OR_NAMES):
            if stage == step.stage:
                files |= digest_of_value(step, key, digests)
    except InputError as error:
        return replace(step, missing=str(error))
    return replace(step, files=files)


def digest_of_value(step: Step, key: str, digests: Digests) -> dict[str, str]:
    """The digest of the file, folder or package that a key of a step names, by STAGE.KEY; empty for
    a name of the hub. Raises InputError if a file that it must be does not exist."""
    value = getattr(step.config, key)
    if not value or is_word(step.stage, key, value):
        return {}

    name = f"{step.stage}.{key}"
    path = Path(value)
    files = {}
    if path.exists():
        files[name] = digest_files(path, digests)
    elif key == "tagger":  # perhaps an installed package, such as a spaCy pipeline
        with suppress(metadata.PackageNotFoundError):
            files[name] = f"{value} {metadata.version(value)}"
    elif (step.stage, key) in FILES or value.startswith((".", "/", "~")):
        raise InputError(f"{name} = {value!r}: no such file or folder")

    if key in ("clip", "prompter"):
        # Now, rather than after the videos are decoded.
        check_clip(value, name, getattr(step.config, "max_text_tokens", 0))
    return files


def digest_files(path: Path, digests: Digests) -> str:
    """The digest of a file, or of the files in and below a folder: those of a spaCy pipeline lie in
    folders of their own. Hidden files and folders, such as .git, are left out."""
    if not path.is_dir():
        return digests.of([path])[0]

    files: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden:
            files[str(name)] = file
    return digest(dict(zip(files, digests.of(list(files.values())), strict=True)))


def check_text_lengths(steps: list[Step], folder: Path) -> None:
    """Raises InputError if a step's texts are longer than the text encoder of `pretrained`
    takes."""
    config = read_json(folder / "config.json")
    limit = config.get("model", {}).get("text", {}).get("max_length")
    if limit is None:
        return

    # By table: zero_shot and evaluate share one, whose key a person would change once.
    tables: dict[str, None] = {}
    for step in steps:
        if padded(getattr(step.config, "max_text_tokens", 0)) > limit:
            tables[TABLE_OF.get(step.stage, step.stage)] = None
    if tables:
        multiple = limit // 8 * 8  # texts are padded to a multiple of 8
        changes = " ".join(f"--set {table}.max_text_tokens={multiple}" for table in tables)
        raise InputError(f"{folder}: its text encoder takes {limit} tokens; {changes}")


def check_files(steps: list[Step], store: Store) -> None:
    """Raises InputError if a step that has to run needs files that cannot be read on this machine.

    Whoever makes a plan calls it, before it starts a run.
    """
    for step in required(steps, store):
        if step.missing:
            raise InputError(step.missing)


def check_test_items(plan: Planned) -> None:
    """Raises InputError if a corpus that will be evaluated has no item to evaluate: a decoded one
    as the evaluation will, before days of training; another one by its manifest, before it is
    decoded.

    What was checked once is not read again, so a run calls it before each of its steps.
    """
    store = plan.store
    for step in required(plan.steps, store):
        if step.stage not in EVALUATIONS or store.find(step):
            continue

        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            corpus = step.inputs[name]
            decoded = store.find(corpus) is not None
            check = (step.fingerprint, corpus.fingerprint, decoded)
            if check in plan.checked:
                continue

            if decoded:
                check_items(config, name, store.folder(corpus))
            # Those of shards or of the sample are checked once they are made.
            elif "manifest" in corpus.paths:
                manifest = Manifest(Path(corpus.paths["manifest"]))
                check_manifest(plan.settings, config, name, manifest)

            plan.checked.add(check)


def check_manifest(
    settings: PipelineConfig, config: EvaluationConfig, name: str, manifest: Manifest
) -> None:
    """Raises InputError if a corpus, once decoded, would have no item to evaluate, or only one
    answer to learn."""
    decoding = settings.corpora[name].decoding
    answering = settings.finetune_qa
    if answering and set(answering.corpora) == {name} and not answering.answers_file:
        check_answers(manifest, decoding, name)

    counts, why = items_of_split(manifest, decoding, config.split)
    reason = f": {why}" if why else ""
    for column, task in TASKS.items():
        if getattr(config, task) == name and not counts[column]:
            raise InputError(
                f"{name}: no {config.split} item has {column}{reason}; assign some in the column "
                f"split, raise corpora.{name}.{config.split}, or set evaluate.{task} to an empty "
                f"string"
            )


def needed(steps: list[Step], stage: str) -> list[Step]:
    """The steps of one stage and everything that they depend on, in order."""
    wanted = {step.fingerprint for step in steps if step.stage == stage}
    if not wanted:
        stages = ", ".join(dict.fromkeys(step.stage for step in steps))
        raise InputError(f"no stage {stage!r}; this configuration has {stages}")

    # From the end, because inputs come before their users.
    for step in reversed(steps):
        if step.fingerprint in wanted:
            wanted |= {source.fingerprint for source in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted]


def required(steps: list[Step], store: Store) -> list[Step]:
    """The steps whose artifacts exist or have to be built, in order.

    An input is built only for a step that runs: if decoded shards were deleted but everything that
    was computed from them exists, nothing is decoded again.
    """
    exists = {step.fingerprint: bool(store.find(step)) for step in steps}
    inputs = {source.fingerprint for step in steps for source in step.inputs.values()}
    wanted = exists.keys() - inputs  # the results that no other step reads

    for step in reversed(steps):
        if step.fingerprint in wanted and not exists[step.fingerprint]:
            wanted |= {source.fingerprint for source in step.inputs.values()}
    return [step for step in steps if step.fingerprint in wanted or exists[step.fingerprint]]


def reason(step: Step, store: Store, config: str = "") -> str:
    """Why a step has to run: what differs from the most similar artifact of the same name, and of
    the same configuration if one is given, by its name or file."""
    others = [record for _, record in store.all() if record.name == step.name]
    if config:
        others = [record for record in others if made_with(record, config)]
    if not others:
        return "no artifact of this configuration yet" if config else "no artifact yet"

    wanted = recipe(step.description)
    # Newest first: `min` returns the first of equals.
    found = [differences(recipe(record), wanted) for record in reversed(others)]
    fewest = min(found, key=len)
    # The line stays readable after a change of many values.
    shown = [difference_text(one) for one in fewest[:3]]
    more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
    return ", ".join(shown) + more


def difference_text(difference: Difference) -> str:
    """Return what differs between an earlier artifact and a step."""
    if difference.kind == "data":  # digests say nothing to a reader
        return f"{difference.name} differs"
    old, new = map(shorten, difference.values)
    return f"{difference.name} = {new} (previous run: {old})"


def made_with(record: Record, config: str) -> bool:
    """Whether the command that built an artifact named this configuration. A record without a
    command fits all."""
    named = (record.run.get("arguments") or {}).get("config", config)
    return config_name(named) == config_name(config)
