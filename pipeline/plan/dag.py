"""The DAG of a configuration: its steps with their inputs and outside files; which of them have to run, and why."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

from alpro.artifact import flatten, has_no_effect
from alpro.errors import InputError
from alpro.files import digest, read_json
from alpro.models.clip_prompter import check_clip
from alpro.models.folder import read_task
from alpro.models.word_pieces import padded
from alpro.pipeline.config.load import load_config
from alpro.pipeline.config.pipeline_config import (
    FILES,
    FILES_OR_NAMES,
    Corpus,
    PipelineConfig,
    is_word,
)
from alpro.pipeline.plan.check_data import items_of_split
from alpro.pipeline.plan.digests import Digests, digest_data, digest_model, digest_shards
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.sources.manifest import has_questions
from alpro.shards.storage import Location, located
from alpro.stages import EVALUATIONS, STAGES
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig, check_items
from alpro.stages.execution.interface import StageConfig
from alpro.stages.index_shards import Config as IndexConfig
from alpro.stages.train_tokenizer import Config as TrainTokenizer
from alpro.stages.zero_shot import Config as ZeroShot


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
    """The DAG, in an order in which it can run: a step for each stage of STAGES that the configuration asks for, with
    the inputs that are declared there."""
    folder = Path(config.pretrained) if config.pretrained else None
    task = model_task(folder) if folder else ""
    configs = stage_configs(config, task)
    made: dict[str, Step] = {}  # by stage
    corpora: dict[str, Step] = {}
    for stage, declared in STAGES.items():
        if stage == "decode_videos":  # a step for each corpus, of index_shards if it names shards
            for name, corpus in config.corpora.items():
                corpora[name] = decoding(name, corpus, made.get("render_sample"), digests)
        if (values := configs[stage]) is None:
            continue
        inputs = {name: made[source] for name, source in declared.inputs.items() if source in made}
        if stage == "train_prompter" and config.train_prompter and config.train_prompter.clip:
            inputs.pop("tokenizer")  # a CLIP has its own
        if stage == "zero_shot" and "prompts" not in inputs:
            inputs.pop("vocabulary", None)  # only entities need it
        if (
            declared.corpora and getattr(values, "tokenizer", "train") == "train"
        ):  # another one reads no captions
            read = config.pretrain if declared.kind == "text" else values
            inputs |= {name: corpora[name] for name in getattr(read, "corpora", corpora)}
        given = {"finetune_retrieval": "model", "finetune_qa": "model", "zero_shot": task}
        given |= {"evaluate": task} if is_evaluated(config, task) else {}
        paths = {given[stage]: folder} if folder and stage in given else {}
        made[stage] = with_files(Step(stage, stage, values, inputs, paths=paths), digests)
    steps = list(made.values())
    after = 1 if "render_sample" in made else 0
    return [*steps[:after], *corpora.values(), *steps[after:]]


def stage_configs(config: PipelineConfig, task: str) -> dict[str, StageConfig | None]:
    """The configuration of each stage, None for those that are not part of the pipeline. task: that of the model folder
    `pretrained`, empty without one."""
    configs: dict[str, StageConfig | None] = {
        stage: getattr(config, stage, None) for stage in STAGES
    }
    prompts = config.pretrain is not None and config.pretrain.needs_prompter
    if config.pretrain is None:
        configs |= {"train_tokenizer": None, "build_vocabulary": None}
    elif (
        tokenizer := config.train_tokenizer.tokenizer
    ) != "train":  # of the other keys, it depends on none
        configs["train_tokenizer"] = TrainTokenizer(tokenizer=tokenizer)
    if not prompts:
        configs |= {"train_prompter": None, "cache_prompts": None}
    elif config.cache_prompts.prompter:
        configs["train_prompter"] = None
    before = zero_shot_config(config)
    if before.corpora and (prompts or (before.retrieval and task in ("", "pretrained"))):
        configs["zero_shot"] = before
    fine_tuned = config.finetune_retrieval or config.finetune_qa
    if not (config.evaluate.corpora and (fine_tuned or is_evaluated(config, task))):
        configs["evaluate"] = None
    return configs


def is_evaluated(config: PipelineConfig, task: str) -> bool:
    """Whether `evaluate` reads the model folder `pretrained`: one that is fine-tuned for a task, unless this pipeline
    fine-tunes it again."""
    again = {"retrieval": config.finetune_retrieval, "qa": config.finetune_qa}
    return task in again and again[task] is None


def zero_shot_config(config: PipelineConfig) -> ZeroShot:
    """The part of `[evaluate]` that the stage `zero_shot` reads, and PEM's threshold. The corpus of questions only
    matters to it, for the prompter's entities, where there is no retrieval."""
    values = config.evaluate.model_dump(include=set(ZeroShot.model_fields))
    values |= {"qa": ""} if config.evaluate.retrieval else {}
    values |= {"threshold": config.pretrain.threshold} if config.pretrain else {}
    return ZeroShot.model_validate(values)


def model_task(folder: Path) -> str:
    """The name of a model folder among the inputs of evaluate: its task."""
    try:
        task = read_task(folder)
    except ValueError as error:
        raise InputError(f"pretrained: {error}") from error
    if task == "prompter":
        raise InputError(
            f"pretrained: {folder} is a prompter; give a model of pre-training or fine-tuning"
        )
    return "pretrained" if task == "pretrain" else task


def decoding(name: str, corpus: Corpus, sample: Step | None, digests: Digests) -> Step:
    """The step that makes one corpus: of the rendered sample, of files whose contents are in its fingerprint, or of
    shards that are there already. `missing` says why the files cannot be read on this machine."""
    if corpus.manifest:
        assert sample is not None
        return Step("decode_videos", f"decode_videos {name}", corpus.decoding, {"sample": sample})
    source, annotations, root = (
        located(corpus.shards or corpus.data),
        corpus.annotation_files,
        corpus.names_root,
    )
    paths: dict[str, Location]
    if corpus.shards:
        index, paths = (
            IndexConfig(kinds=corpus.kinds, max_reject_share=corpus.max_reject_share),
            {"shards": source},
        )
        step = Step("index_shards", f"index_shards {name}", index, paths=paths)
    else:
        paths = {"data": source, **annotations, "manifests": digests.manifests} | (
            {"root": root} if root else {}
        )
        step = Step("decode_videos", f"decode_videos {name}", corpus.decoding, paths=paths)

    def contents(ask: bool) -> str:
        if corpus.shards:
            return digest_shards(source, digests)
        return digest_data(source, digests, annotations, root, ask)

    def unchanged() -> bool:
        try:
            return contents(ask=False) == before
        except InputError:  # it cannot be read any more
            return False

    try:
        before = contents(ask=True)
    except InputError as error:
        return replace(step, missing=str(error))
    # A corpus at a URL is not checked again: a store may describe the same file differently each time.
    here = all(isinstance(path, Path) for path in step.paths.values())
    files = {"shards" if corpus.shards else "data": before}
    return replace(step, files=files, unchanged=unchanged if here else None)


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
    tables = {"zero_shot": "evaluate"}
    lengths = {
        tables.get(step.stage, step.stage): getattr(step.config, "max_text_tokens", 0)
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
            if not corpus.data:
                continue
            files, cache = (
                (corpus.annotation_files, corpus.names_root),
                Path(str(decoded.paths["manifests"])),
            )
            counts, why = items_of_split(
                located(corpus.data), corpus.decoding, config.split, *files, cache
            )
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


def reason(step: Step, store: Store) -> str:
    """Why a step has to run: what differs from the most similar artifact of the same name."""
    others = [record for _, record in store.all() if record["name"] == step.name]
    if not others:
        return "no artifact yet"
    fewest = min(
        (differences(record, step.description) for record in reversed(others)), key=len
    )  # the newest first
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
    for what, kind in (("input", "inputs"), ("files of", "files")):
        old, new = record[kind], description[kind]
        changes += [
            f"{what} {name}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return changes
