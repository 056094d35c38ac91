"""Evaluate a model: retrieval, question answering, entities, and controls (paper, section 4).

A pipeline has a step for each model: `evaluate prompter`, `evaluate pretrained`,
`evaluate retrieval`, `evaluate qa`, and `evaluate baseline`, a CLIP that was not trained. Scores of
the same name are over the same queries, so any two steps can be compared.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from alpro.inference.loading import Found, load_bundle
from alpro.log import log
from alpro.models.folder import ModelBundle, load_clip_model
from alpro.models.precision import autocast, compute_dtype, dtype_name
from alpro.models.ranks import rank
from alpro.stages.evaluation.evaluate_model import Asked, evaluate_model
from alpro.stages.evaluation.gallery import Gallery, draw_searches
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.metrics import TABLE_VERSION
from alpro.stages.evaluation.protocol import (
    EvaluationConfig,
    describe_data,
    find_excluded,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.execution.interface import (
    Corpora,
    Outcome,
    Resources,
    Share,
    StageInputs,
)
from alpro.stages.training.distributed import init_distributed

# Intervals of few videos are wider; the calibration error is of all crops.
VERSION = f"18 {TABLE_VERSION}"


class Config(EvaluationConfig, frozen=True):
    """Evaluation of one model: the keys of `[evaluate]` that concern it."""

    model_name: str
    """what results call the model"""
    threshold: Share = 0.2
    """minimum probability of the pseudo-labels that PEM keeps"""


class Inputs(StageInputs):
    """The model, unless it is the baseline or the CLIP beside the prompts; the prompts of a
    prompter; the corpora of the evaluation."""

    model: Path | None = None
    prompts: Path | None = None
    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write results.json, scores.parquet and tables of the queries."""
    # The processes share the encoding of videos and the scoring of pairs, and all have all results:
    # what the others write is deleted.
    with (
        init_distributed(resources) as world,
        nullcontext(str(out)) if world.main else TemporaryDirectory() as written,
    ):
        device = world.device
        results_folder = Path(written)
        if config.baseline:
            bundle: ModelBundle = load_clip_model(config.baseline, device, "baseline")
        else:
            folder = inputs.model or inputs.prompts
            assert folder is not None
            bundle = load_bundle(Found(folder, inputs.prompts), device)
        if config.frames:
            # This resizes the time embedding, as fine-tuning does.
            bundle.model.set_frames(config.frames)
        model = LoadedModel(
            config.model_name,
            bundle,
            bundle.normalized(device),
            config.max_text_tokens,
        )
        width = bundle.model.config.video.width
        dtype = compute_dtype(width, device, config.mixed_precision)
        results = Results(config.model_name)
        describe_data(results, config, inputs.corpora)
        with autocast(dtype, device):
            for column, name in config.texts:
                corpus = inputs.corpora[name]
                results.extend(
                    evaluate_corpus(model, config, corpus, column, results_folder)
                )

        rows, metrics = results.write(results_folder, config.split)
        return Outcome(
            {row["name"]: row["items"] for row in rows},
            metrics,
            warnings=results.warnings,
            precision=dtype_name(dtype),
        )


def evaluate_corpus(
    model: LoadedModel, config: Config, corpus: Path, column: str, out: Path
) -> Results:
    """Evaluate a model on the captions or the questions of a corpus."""
    excluded = find_excluded(config, corpus)
    gallery = Gallery.read(corpus, config.split, excluded, column)
    asked = Asked(
        top_k=config.top_k,
        controls=tuple(dict.fromkeys(config.controls)),
        seed=config.seed,
        contrasts=config.contrasts,
        entity_crops=config.entity_crops,
        threshold=config.threshold,
    )
    if model.bundle.answers and column == "questions":
        training = Gallery.read(corpus, "train", column=column)
        asked = replace(asked, training_questions=training.questions)

    if rank() == 0:
        log.info(
            f"{model.name}: {len(gallery.ids):,} videos, {len(gallery.texts):,} {column}"
        )
    results = evaluate_model(model, gallery, asked)
    # Ranked by similarity, as by `alpro search`: the picture shows what a search finds.
    ranking = results.tables.get("similarity_t2v")
    if ranking:
        draw_searches(gallery, ranking, out / "pictures" / "retrieval.png")
    return results
