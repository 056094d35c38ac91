"""The plan of a command: its steps with their inputs and outside files, and which have to run."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from alpro.artifact import Artifact, Record
from alpro.errors import InputError
from alpro.files import digest
from alpro.inference.loading import check_clip
from alpro.inference.names import write_refs
from alpro.log import warn_once
from alpro.pipeline.config.command import Command, suggest
from alpro.pipeline.config.load import read_settings, variations
from alpro.pipeline.config.pipeline_config import Corpus, PipelineConfig
from alpro.pipeline.plan.digests import (
    Digests,
    digest_files,
    digest_manifest,
    digest_model,
    digest_named,
)
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.runs import FINISHED, read_runs
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.storage import located
from alpro.stages.dag import list_steps
from alpro.stages.decode_videos import Config as DecodeVideos
from alpro.stages.execution.interface import FILE_OR_NAME
from alpro.stages.execution.step import Step
from alpro.stages.index_shards import Config as IndexShards
from alpro.stages.index_shards import list_shards


@dataclass(frozen=True)
class Plan:
    """A command with its configuration, its steps in order, and the store of the workspace."""

    command: Command
    settings: PipelineConfig
    steps: list[Step]
    store: Store

    @property
    def workspace(self) -> Path:
        """The folder of artifacts and reports."""
        return self.store.root.parent

    @property
    def report(self) -> Path:
        """The page of a run of this plan, which no run with other steps replaces."""
        mark = digest([step.fingerprint for step in self.steps])[:6]
        return self.workspace / "reports" / f"{self.settings.name}-{mark}.html"

    @cached_property
    def records(self) -> dict[str, Record]:
        """The artifacts that exist when the plan is first asked about them, by fingerprint."""
        records = {step.fingerprint: self.store.find(step) for step in self.steps}
        return {name: record for name, record in records.items() if record}

    @cached_property
    def required(self) -> list[Step]:
        """The steps whose artifacts exist or have to be built, in order.

        An input is built only for a step that runs: if decoded shards were deleted but everything
        that was computed from them exists, nothing is decoded again.
        """
        read = {one.name for step in self.steps for one in step.inputs.values()}
        # What no other step reads, and what exists.
        names = {
            step.name
            for step in self.steps
            if step.name not in read or step.fingerprint in self.records
        }
        return with_inputs(self.steps, names, self.records)

    @property
    def steps_to_run(self) -> list[Step]:
        """The steps whose artifacts have to be built, in order."""
        return [step for step in self.required if step.fingerprint not in self.records]

    @property
    def finished(self) -> list[Artifact]:
        """The artifacts of a run that has nothing to do: all are in the workspace, which has an
        MLflow store, and the last run of these steps, if there was one, finished and has its
        report. Empty if anything is left to do."""
        runs = read_runs(self.workspace)
        states = [run.state for run in runs if run.report == self.report.name]
        if states and not (states[-1] == FINISHED and self.report.is_file()):
            return []
        if self.steps_to_run or not (self.workspace / "mlflow.db").is_file():
            return []

        return [
            (self.store.folder(step), self.records[step.fingerprint])
            for step in self.required
        ]


def write_names(plan: Plan, fingerprints: Mapping[str, str]) -> None:
    """Let STAGE, and CONFIG/STAGE if the command makes no variant, stand for artifacts.

    Args:
        fingerprints: Their fingerprints, by the names of the steps.
    """
    command = plan.command
    write_refs(plan.workspace, command.config_name, variations(command), fingerprints)


def make_plan(command: Command, workspace: Path) -> Plan:
    """Plan the stage of a command or, without one, the whole pipeline.

    Args:
        workspace: Folder of the artifacts, which exists.

    Raises:
        InputError: If the configuration is invalid, or a file that decides a fingerprint fails.
    """
    settings = read_settings(command)
    digests = Digests(workspace / "digests.sqlite")
    settings, steps = build_steps(settings, digests)
    stage = command.stage
    if stage:
        names = [step.name for step in steps if stage in (step.stage, step.name)]
        if not names:
            hint = suggest(stage, [step.name for step in steps])
            raise InputError(f"no stage {stage!r}; {hint}")
        steps = with_inputs(steps, names)
    return Plan(command, settings, steps, Store(workspace / "artifacts"))


def build_steps(
    settings: PipelineConfig, digests: Digests
) -> tuple[PipelineConfig, list[Step]]:
    """Return the steps of a configuration in an order in which they can run: the rendered sample,
    the corpora, and what is made of them.

    The contents of the user's files are part of a step's fingerprint. A step's `unreadable` says
    why they cannot be read on this machine.

    Returns:
        The configuration without what the data has nothing for, and its steps.
    """
    sample = {}
    if settings.render_sample:
        step = Step("render_sample", "render_sample", settings.render_sample)
        sample["sample"] = step

    corpora = {}
    for name, corpus in settings.corpora.items():
        step = make_corpus_step(name, corpus)
        if corpus.manifest and sample:
            corpora[name] = replace(step, inputs=sample)
        elif corpus.shards or corpus.data:
            try:
                corpora[name] = with_files(step, corpus, digests)
            except InputError as error:
                # The proposed block names this corpus.
                block = f"[corpora.{name}.columns]"
                reason = str(error).replace("[corpora.data.columns]", block)
                corpora[name] = replace(step, unreadable=reason)

    manifests = {
        name: Manifest(step.manifest) for name, step in corpora.items() if step.manifest
    }
    settings = without_questions(settings, manifests)

    later = list_steps(settings, corpora, lambda step: with_digests(step, digests))
    return settings, [*sample.values(), *corpora.values(), *later]


def make_corpus_step(name: str, corpus: Corpus) -> Step:
    """Return the step that makes a corpus, without its inputs."""
    stage = "index_shards" if corpus.shards else "decode_videos"
    config = IndexShards if corpus.shards else DecodeVideos
    values = {key: getattr(corpus, key) for key in config.model_fields}
    return Step(stage, f"{stage} {name}", config.model_construct(**values))


def with_files(step: Step, corpus: Corpus, digests: Digests) -> Step:
    """Return the step that indexes existing shards, or that decodes the user's files, with their
    digest. Tables are imported here, once; the stage reads the manifest.

    Its `recheck` reads the files again; None for files at a URL, since a store may describe the same
    file differently each time.

    Raises:
        InputError: If the files cannot be read.
    """
    place = located(corpus.shards or corpus.data)

    def read(ask: bool) -> Step:
        """ask: Ask the stores of files at URLs; otherwise, their last answers count."""
        if corpus.shards:
            # Their locations are also in the index.
            shards = {str(shard): shard for shard in list_shards(place)}
            contents = {"shards": digest_named(shards, digests)}
            return replace(step, given={"shards": place}, digests=contents)
        manifest = import_corpus(corpus, digests.path.with_name("manifests"))
        contents = {"data": digest_manifest(manifest, digests, ask)}
        return replace(step, given={"manifest": manifest.folder}, digests=contents)

    described = read(ask=True)

    def is_unchanged() -> bool:
        try:
            return read(ask=False).digests == described.digests
        except InputError:  # they cannot be read any more
            return False

    if isinstance(place, Path):
        return replace(described, recheck=is_unchanged)
    return described


def import_corpus(corpus: Corpus, folder: Path) -> Manifest:
    """Import the user's files, or find what an earlier import of them left in a folder."""
    root = Path(corpus.root) if corpus.root else None
    annotations: dict[str, list[Path]] = {
        split: [*map(Path, files)] for split, files in corpus.annotations.items()
    }
    return import_source(
        located(corpus.data), folder, annotations, root, corpus.columns
    )


def with_digests(step: Step, digests: Digests) -> Step:
    """Return a step with the digests of the models and files that it names; its `unreadable` says
    why they cannot be read."""
    files = {}
    try:
        for name, folder in step.given.items():
            files[name] = digest_model(Path(folder), digests)
        for key, (value, kind) in step.config.path_values.items():
            setting = f"{step.stage}.{key}"
            path = Path(value)
            if path.exists():
                files[setting] = digest_files(path, digests)
            elif setting == "build_vocabulary.tagger":
                # Perhaps an installed package, such as a spaCy pipeline.
                with suppress(metadata.PackageNotFoundError):
                    files[setting] = f"{value} {metadata.version(value)}"
            elif kind != FILE_OR_NAME["path"] or value.startswith((".", "/", "~")):
                raise InputError(f"{setting} = {value!r}: no such file or folder")

            # Now, rather than after the videos are decoded.
            if key in ("clip", "prompter", "baseline"):
                check_clip(value, setting)
    except InputError as error:
        return replace(step, unreadable=str(error))
    return replace(step, digests=files)


def without_questions(
    settings: PipelineConfig, manifests: Mapping[str, Manifest]
) -> PipelineConfig:
    """Leave out question answering on corpora that have no questions.

    A configuration that only answers questions stays as it is: such data is a mistake then.

    Args:
        manifests: the corpora whose files are imported.
    """
    if not (settings.finetune_retrieval or settings.evaluate.retrieval):
        return settings

    silent = {
        name for name, rows in manifests.items() if not rows.about["has_questions"]
    }
    changes: dict[str, Any] = {}
    answering = settings.finetune_qa
    if answering and silent.issuperset(answering.corpora):
        names = ", ".join(settings.corpora[name].data for name in answering.corpora)
        warn_once(f"no questions in {names}: question answering is skipped")
        changes["finetune_qa"] = None
    if settings.evaluate.qa in silent:
        changes["evaluate"] = settings.evaluate.model_copy(update={"qa": ""})
    return settings.model_copy(update=changes)


def with_inputs(
    steps: Sequence[Step], names: Iterable[str], finished: Collection[str] = ()
) -> list[Step]:
    """Return the steps of these names and all that they are built from, in order.

    Args:
        finished: fingerprints of artifacts that exist: their steps need no inputs.
    """
    wanted = {*names}
    for step in reversed(steps):
        if step.name in wanted and step.fingerprint not in finished:
            wanted.update(source.name for source in step.inputs.values())
    return [step for step in steps if step.name in wanted]
