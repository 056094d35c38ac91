"""`alpro model ...` and `alpro eval`: what a person does with a model."""

import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from cyclopts import App, Parameter

from alpro.files import expand_home
from alpro.inference.names import find_artifact
from alpro.log import log
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Artifact,
    Count,
    File,
    ModelOptions,
    Named,
    TrackingUri,
    Workspace,
)

group = App(name="model", help="Use, import, export and register models.")
Video = Annotated[str, Parameter(help="A video or an image: a file or a URL.")]
Results = Annotated[
    Count, Parameter(name=("-k", "--results"), help="Number of results.")
]


@group.command(name="import")
def import_model(
    file: File,
    out: File,
    /,
    *,
    task: Literal["pretrain", "retrieval", "qa", "prompter"],
    tokenizer: str = "bert-base-uncased",
    words: File | None = None,
    max_text_tokens: Count | None = None,
) -> None:
    """Convert a checkpoint of the official ALPRO to a model folder.

    Reads only the tensors of a checkpoint of the official code and writes a model folder, which
    --pretrained and `pretrained` in a configuration take. The prompter of a pre-training checkpoint
    is written to OUT/prompter.

    Args:
        file: The checkpoint.
        out: The folder to write, which must not exist yet.
        task: What the checkpoint was trained for.
        tokenizer: Its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt.
        words: Names of the entities (pretrain, prompter) or answers (qa) in the order of the head:
            a JSON list, JSON object of word to number (ans2label.json), or lines; without it they
            are numbered.
        max_text_tokens: Maximum word pieces of a text, as in its training; by default 30, for
            retrieval and qa 40.
    """
    from alpro.models.official import import_checkpoint

    name = str(expand_home(tokenizer))
    models = import_checkpoint(
        file, out, task, name, words, max_text_tokens=max_text_tokens
    )
    for imported in models:
        print(f"{out}: imported a {imported.bundle.task} model")
        if imported.unknown:
            print("  unknown tensors, not imported:", *imported.unknown, sep="\n    ")


@group.command(name="export")
def export_model(
    model: Named,
    folder: File,
    /,
    *,
    license: str = "",
    models: ModelOptions = ModelOptions(),
) -> None:
    """Write a folder that transformers and sentence-transformers load without this package.

    Its code is beside the weights: AutoModel, AutoProcessor and SentenceTransformer take
    trust_remote_code=True.

    Args:
        folder: The folder to write, which must not exist yet.
        license: License of the weights, for the model card.
    """
    from alpro import Model
    from alpro.inference.export import export
    from alpro.pipeline.reports.card import write_card

    found = models.find(model)
    loaded = Model.load(found, device="cpu")
    export(loaded, folder, write_card(found.model, loaded.folder, folder.name, license))
    print(
        f"{folder}: a {loaded.folder.task} model for transformers; README.md is its model card"
    )


@group.command(name="register")
def register_model(
    model: Artifact,
    /,
    *,
    name: str,
    alias: str = "",
    workspace: Workspace = WORKSPACE,
    tracking_uri: TrackingUri = "",
) -> None:
    """Add a model to MLflow's registry, for mlflow.pyfunc.load_model.

    Copies the model of an artifact to MLflow's registry as a new version of NAME.

    Args:
        name: Name of the registered model.
        alias: An alias for this version, such as champion.
    """
    from alpro.pipeline.tracking.registry import register

    workspace = workspace.resolve()
    version = register(
        tracking_uri, workspace, *find_artifact(model, workspace), name, alias
    )

    loaded = f"models:/{name}{'@' + alias if alias else '/' + version}"
    print(
        f"{name}, version {version}; load it with mlflow.pyfunc.load_model({loaded!r})"
    )


@group.command
def ask(
    model: Named,
    video: Video,
    question: str,
    /,
    *,
    k: Results = 3,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Answer a question about a video, from the model's list of answers.

    The model is one of finetune_qa. It chooses among the answers of its training questions.

    Args:
        question: The question, in quotes.
    """
    loaded = models.load(models.find(model))
    if note := loaded.note(question):
        print(f"note: {note}", file=sys.stderr)

    print_words("answer", loaded.ask(video, question, top_k=k))


@group.command
def entities(
    model: Named,
    video: Video,
    /,
    *,
    box: str = "",
    k: Results = 5,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Name the entities in a video, or in a region of it.

    The names come from the vocabulary. The model is a prompter with the prompts of cache_prompts.

    Args:
        box: Left, top, width and height of a region as fractions of the frame, such as 0.5,0,0.5,1;
            by default all.
    """
    from alpro.inference.model import WHOLE, region_to_patches

    region = box or WHOLE
    region_to_patches(region, grid=1)  # a wrong one is refused before a model is loaded
    loaded = models.load(models.find(model))
    print_words("entity", loaded.entities(video, region, top_k=k))
    print(f"note: {loaded.entities_note}", file=sys.stderr)


def print_words(head: str, ranked: Iterable[tuple[str, float]]) -> None:
    """Print words with their probabilities."""
    from alpro.pipeline.reports.columns import print_rows

    print_rows([{head: word, "probability": f"{p:.3f}"} for word, p in ranked])


def evaluate(
    model: Named,
    data: str,
    /,
    *,
    split: Literal["train", "validation", "test"] = "test",
    baseline: str = "",
    out: File | None = None,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Score any model on any videos with labels.

    Retrieval with all right videos of a text, answers to questions, and entities of a prompter: what
    the model can and the data has labels for. Equal captions are one text; a column `relevant` names other
    right videos by their ids.

    Args:
        data: A decoded corpus, a manifest, or a folder of videos with texts.
        split: The videos to evaluate, if the data names splits, or if the model was trained on it.
        baseline: Another model to compare with, such as a CLIP: its folder, or its name on the hub.
        out: Write results.json and scores.parquet there.
    """
    from alpro.pipeline.reports.comparison import compare_scores
    from alpro.pipeline.reports.results import tables
    from alpro.pipeline.reports.terminal import print_tables
    from alpro.stages.evaluation.any_model import score_models
    from alpro.stages.evaluation.comparison import read_results
    from alpro.stages.evaluation.labeled_data import read_labeled

    names = [name for name in (model, baseline) if name]
    found = [models.find(name) for name in names]
    loaded = [models.load(one) for one in found]
    column = "questions" if loaded[0].folder.answers else "captions"
    folders = [one.model for one in found]
    videos = models.videos(data)
    gallery, description = read_labeled(videos, split, folders, column)
    log.info(f"{len(gallery.ids):,} videos ({description})")

    with TemporaryDirectory() as temporary:
        # Without --out, the results are only shown below.
        root = out or Path(temporary)
        outs = [root, root / "baseline"][: len(names)]
        score_models(list(zip(names, loaded, outs, strict=True)), gallery, split)
        if baseline:
            print_tables(*compare_scores([baseline, model], outs[::-1]))
        else:
            print_tables(tables(read_results(root)))
