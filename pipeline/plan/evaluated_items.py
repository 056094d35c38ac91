"""A check before a run: the corpora of an evaluation have items to evaluate."""

from pathlib import Path
from typing import cast

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus, PipelineConfig
from alpro.pipeline.plan.steps import required
from alpro.pipeline.store.artifacts import Step, Store
from alpro.shards.storage import located
from alpro.stages import EVALUATIONS
from alpro.stages.corpora.check_data import items_of_split
from alpro.stages.decode_videos import Config as DecodeConfig
from alpro.stages.evaluation.protocol import TASKS, EvaluationConfig


def check_test_items(settings: PipelineConfig, steps: list[Step], store: Store) -> None:
    """Raises InputError, before anything is decoded, if a corpus that will be evaluated has no item to evaluate."""
    wanted = required(steps, store)
    for step in wanted:
        if step.stage not in EVALUATIONS or store.find(step):
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            corpus, decoding = settings.corpora[name], step.inputs[name]
            if not corpus.data or decoding not in wanted or store.find(decoding) or store.is_shared(decoding):
                continue
            decode_config, paths = decoding_of(corpus)
            counts, why = items_of_split(located(corpus.data), decode_config, config.split, *paths)
            for column, task in TASKS.items():
                if getattr(config, task) == name and not counts[column]:
                    reason = f": {why}" if why else ""
                    raise InputError(
                        f"{name}: no {config.split} item has {column}{reason}; assign some in the column split, raise "
                        f"corpora.{name}.{config.split}, or set evaluate.{task} to an empty string"
                    )


def decoding_of(corpus: Corpus) -> tuple[DecodeConfig, tuple[dict[str, Path], Path | None]]:
    """The configuration of the stage that decodes a corpus, and its annotation files with the root of their names."""
    config = DecodeConfig.model_validate(corpus.model_dump(exclude={"data", "shards", "annotations", "root"}))
    return config, (corpus.annotation_files, Path(corpus.root) if corpus.root else None)
