"""`alpro model ...`: use a trained model. The commands print what `alpro.Model` computes."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.artifact_names import find_artifact
from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.inputs import WHOLE, Box, check_text, parse_box
from alpro.pipeline.cli.arguments import (
    add_action,
    add_group,
    add_json,
    add_tracking_uri,
    add_workspace,
    natural,
    positive,
    user_path,
)

if TYPE_CHECKING:
    from alpro import Model
    from alpro.stages.inference.index import Index
    from alpro.stages.inference.index_videos import Counts
    from alpro.stages.inference.search import Found

MODEL = (
    "a model folder, a stage (its newest artifact is taken), the fingerprint of an artifact or its first characters, "
    "STAGE@FINGERPRINT, or models:/NAME@ALIAS of the registry"
)
TASKS = ("pretrain", "retrieval", "qa", "prompter")  # of official checkpoints
MAX_REPORTED = 20  # rejected files that are printed; rejects.parquet has all of them


def add_model_commands(commands: Any) -> Any:
    """`alpro model ...`: the commands about trained models. Returns their group, to which others are added."""
    actions = add_group(commands, "model", "search videos, ask questions, import, export and register models")
    add_index(actions)
    add_search(actions)
    add_ask(actions)
    add_entities(actions)
    add_import(actions)
    add_export(actions)
    add_register(actions)
    return actions


def add_index(actions: Any) -> None:
    more = (
        "Videos that the index has are skipped, so the command also adds new ones and continues after an interruption."
    )
    parser = add_action(actions, "index", index_videos, "embed videos into an index for `alpro model search`", more)
    add_model(parser)
    parser.add_argument(
        "videos", metavar="VIDEOS", help="a folder of videos and images, a manifest, or a decoded corpus"
    )
    parser.add_argument("index", type=user_path, metavar="INDEX", help="the folder of the index")
    add_shared(parser)


def add_search(actions: Any) -> None:
    more = "All clips are ranked by similarity (VTC), then the best of them are decoded and ranked by matching (VTM)."
    parser = add_action(actions, "search", search_index, "search an index for the videos that fit a text best", more)
    parser.add_argument("index", type=user_path, metavar="INDEX", help="a folder that `alpro model index` filled")
    parser.add_argument("text", metavar="TEXT", help="what the videos should show")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="number of results (default: 10)")
    add_rerank(parser)
    parser.add_argument("--model", default="", metavar="MODEL", help="the index's model, if it has moved")
    add_shared(parser)


def add_ask(actions: Any) -> None:
    more = "The answers are those of the training questions that the model was fine-tuned with; it gives no others."
    parser = add_action(actions, "ask", ask, "answer a question about a video, from the model's list of answers", more)
    add_model_and_video(parser, "a model of finetune_qa", "answers", 3)
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    add_shared(parser)


def add_entities(actions: Any) -> None:
    text = "name the entities in a video, or in a region of it"
    more = "The names are those of the vocabulary. A model of pretrain answers beside its prompter, by its PEM head."
    parser = add_action(actions, "entities", name_entities, text, more)
    add_model_and_video(parser, "a prompter, or a model that was trained with one", "entities", 5)
    parser.add_argument(
        "--box",
        type=box,
        default=WHOLE,
        metavar="X,Y,W,H",
        help="left, top, width and height of a region as fractions of the frame, 0 to 1 (default: 0,0,1,1)",
    )
    parser.add_argument(
        "--text", default="", help="caption of the video, which a model of pretrain reads (default: none)"
    )
    add_shared(parser)


def add_import(actions: Any) -> None:
    parser = add_action(
        actions,
        "import",
        import_model,
        "convert a checkpoint of the official ALPRO to a model folder",
        description="Reads only the tensors of a checkpoint of the official code and writes a model folder, which "
        "--pretrained and `pretrained` in a configuration take. The prompter of a pre-training checkpoint is written "
        "to OUT/prompter.",
    )
    parser.add_argument("file", type=user_path, metavar="FILE", help="the checkpoint")
    parser.add_argument("out", type=user_path, metavar="OUT", help="the folder to write, which must not exist yet")
    parser.add_argument("--task", required=True, choices=TASKS, help="what the checkpoint was trained for")
    parser.add_argument(
        "--tokenizer",
        type=os.path.expanduser,
        default="bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        help="its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt (default: bert-base-uncased)",
    )
    parser.add_argument(
        "--words",
        type=user_path,
        metavar="FILE",
        help="names of the entities (pretrain, prompter) or answers (qa) in the order of the head: a JSON list, JSON "
        "object of word to number (ans2label.json), or lines; without it they are numbered",
    )
    parser.add_argument(
        "--max-text-tokens",
        type=int,
        metavar="N",
        help="maximum word pieces of a text, as in its training (default: 30 for pretrain and prompter, 40 for "
        "retrieval and qa; the official DiDeMo model has 50)",
    )


def add_export(actions: Any) -> None:
    text = "write a folder that Hugging Face transformers loads without this package"
    more = "Its code is beside the weights: AutoModel and AutoProcessor load it with trust_remote_code=True."
    parser = add_action(actions, "export", export_model, text, more)
    add_model(parser)
    parser.add_argument(
        "folder", type=user_path, metavar="FOLDER", help="the folder to write, which must not exist yet"
    )
    parser.add_argument("--license", default="", metavar="NAME", help="license of the weights, for the model card")
    add_named_models(parser)


def add_register(actions: Any) -> None:
    text = "add a model to MLflow's registry, for mlflow.pyfunc.load_model"
    description = "Copies the model of an artifact to MLflow's registry as a new version of NAME."
    parser = add_action(actions, "register", register_model, text, description=description)
    parser.add_argument("model", metavar="MODEL", help=MODEL.rpartition(", or models:")[0])
    parser.add_argument("--name", required=True, help="name of the registered model")
    parser.add_argument("--alias", default="", help="an alias for this version, such as champion")
    add_workspace(parser, "folder of the artifacts")
    add_tracking_uri(parser)


def add_model(parser: argparse.ArgumentParser, what: str = "") -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{what}{MODEL}")


def add_model_and_video(parser: argparse.ArgumentParser, what: str, results: str, number: int) -> None:
    """The arguments of the commands about one video. what: the models that the command takes."""
    add_model(parser, f"{what}: ")
    parser.add_argument("video", metavar="VIDEO", help="a video or an image: a file or a URL")
    help = f"number of {results} (default: {number})"
    parser.add_argument("-k", type=positive, default=number, metavar="N", help=help)


def add_rerank(parser: argparse.ArgumentParser) -> None:
    help = "number of clips ranked by matching (default: 20; 0: none)"
    parser.add_argument("--rerank", type=natural, default=20, metavar="N", help=help)


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model and prints its results."""
    add_json(parser)
    add_model_use(parser)


def add_model_use(parser: argparse.ArgumentParser) -> None:
    """The options of every command that runs a model."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the encoders; auto: bfloat16 if this machine computes it faster",
    )
    add_named_models(parser)


def add_named_models(parser: argparse.ArgumentParser) -> None:
    add_workspace(parser, "folder of the artifacts that MODEL may name")
    add_tracking_uri(parser)


def box(text: str) -> Box:
    """The region of X,Y,W,H."""
    try:
        return parse_box(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model_path(arguments: argparse.Namespace, name: str) -> Path:
    """The folder of the model that a person names. Raises InputError if there is none."""
    from alpro.stages.inference.find import find_model

    if not name.startswith("models:/"):
        return find_model(name, arguments.workspace)
    from alpro.pipeline.tracking.registry import registered_folder

    database = arguments.workspace.resolve() / "mlflow.db"
    if not arguments.tracking_uri and not database.is_file():  # MLflow would create it
        raise InputError(f"{name}: no MLflow store {database}; name the server with --tracking-uri")
    return registered_folder(arguments.tracking_uri or f"sqlite:///{database}", name)


def index_videos(arguments: argparse.Namespace) -> None:
    from alpro.shards.storage import absolute
    from alpro.stages.inference.find import model_digest
    from alpro.stages.inference.index import About, Index, check_digest
    from alpro.stages.inference.index_videos import scan_videos, update_index

    videos = absolute(arguments.videos)
    if isinstance(videos, Path) and not videos.exists() and re.fullmatch(r"[\w-]+(@\w+)?", arguments.videos):
        videos, _ = find_artifact(arguments.videos, arguments.workspace)  # a corpus of the workspace
    folder = model_path(arguments, arguments.model).resolve()
    digest = model_digest(folder)
    if (arguments.index / "index.json").is_file():  # before the model is loaded
        check_digest(arguments.index, Index.open(arguments.index).about, folder, digest)
    items = scan_videos(videos)
    sources = list(items) if isinstance(videos, Path) and videos.is_dir() else items  # else, its rows are streamed
    model = load(arguments, folder)
    about = About(model=str(folder), digest=digest, embed_dim=model.embed_dim)
    reported = 0

    def report(line: str) -> None:
        nonlocal reported
        reported += 1
        if reported <= MAX_REPORTED:
            print(f"rejected: {line}", file=sys.stderr)

    counts = update_index(arguments.index, model, about, sources, report)
    if reported > MAX_REPORTED:
        print(f"rejected: {reported - MAX_REPORTED} more", file=sys.stderr)
    print_counts(arguments, counts)


def print_counts(arguments: argparse.Namespace, counts: "Counts") -> None:
    """Prints what was embedded, and raises InputError if the index has nothing."""
    from alpro.stages.inference.index import Index

    clips = len(Index.open(arguments.index))
    if arguments.json:
        print(json.dumps({"clips": clips, **vars(counts)}))
    else:
        print(f"{arguments.index}: {clips:,} clips")
        replaced = f" ({counts.replaced:,} changed)" if counts.replaced else ""
        print(f"  {counts.embedded:,} embedded{replaced}, {counts.skipped:,} unchanged since an earlier run")
        if counts.rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.reasons.items()))
            print(f"  {counts.rejected:,} rejected ({reasons}): {arguments.index / 'rejects.parquet'}")
    if not clips:
        raise InputError(f"{arguments.index}: none of the videos could be decoded, the index is empty")


def search_index(arguments: argparse.Namespace) -> None:
    require_text(arguments.text)
    from time import perf_counter

    from alpro.stages.inference.search import search

    started = perf_counter()
    index = open_index(arguments.index)
    opened = perf_counter()
    name = str(model_path(arguments, arguments.model)) if arguments.model else ""
    model = index.load_model(name, device=arguments.device, dtype=arguments.dtype)
    loaded = perf_counter()
    found = search(index, model, arguments.text, arguments.k, arguments.rerank)
    found.seconds = {"index": opened - started, "model": loaded - opened, **found.seconds}
    print_found(arguments, found)


def open_index(folder: Path) -> "Index":
    """Raises InputError if the index has nothing to search."""
    from alpro.stages.inference.index import Index

    index = Index.open(folder)
    if not len(index):
        raise InputError(f"{folder}: the index is empty; `alpro model index` adds videos to it")
    return index


def print_found(arguments: argparse.Namespace, found: "Found") -> None:
    from alpro.stages.inference.search import hit_path

    if arguments.json:
        fields = ("id", "path", "kind", "start", "end")
        hits = [
            {"rank": rank, **{name: hit.item[name] for name in fields}}
            | {"similarity": hit.similarity, "match": hit.match, "note": hit.note}
            for rank, hit in enumerate(found.hits, 1)
        ]
        counts = {"clips": found.clips, "matched": found.matched, "note": found.note}
        print(json.dumps({"text": arguments.text, **counts, "seconds": found.seconds, "hits": hits}))
        return
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    print("rank  similarity  match  video")
    for rank, hit in enumerate(found.hits, 1):
        matched = "" if hit.match is None else f"{hit.match:.3f}"
        note = f" ({hit.note})" if hit.note else ""
        print(f"{rank:4}  {hit.similarity:10.3f}  {matched:>5}  {hit_path(hit.item)}{note}")
    times = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in found.seconds.items())
    print(f"{found.clips:,} clips by similarity, {found.matched} by matching: {times}")


def require_text(text: str, what: str = "text") -> None:
    """Refuses an empty text before a model is loaded."""
    try:
        check_text(text, what)
    except ValueError as error:
        raise InputError(str(error)) from error


def format_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def load(arguments: argparse.Namespace, folder: Path, prompts: Path | str = "") -> "Model":
    from alpro import Model

    return Model.from_pretrained(folder, prompts, device=arguments.device, dtype=arguments.dtype)


def ask(arguments: argparse.Namespace) -> None:
    require_text(arguments.question, "question")
    from alpro.stages.inference.model import UNKNOWN

    model, question = load(arguments, model_path(arguments, arguments.model)), arguments.question
    if not model.knows(question):
        print(f"note: {UNKNOWN}", file=sys.stderr)
    answer = partial(model.ask, arguments.video, question, arguments.k)
    print_ranked(arguments, {"question": question}, {"answers": answer})


def name_entities(arguments: argparse.Namespace) -> None:
    from alpro.stages.inference.find import find_prompter, is_pretrained

    folder, box = model_path(arguments, arguments.model), arguments.box
    named = find_prompter(folder, follow=True)
    models = [load(arguments, *named)]
    if is_pretrained(folder) and named[0] != folder:
        models.append(load(arguments, folder))
    ranks = {
        "entities" if model.prompts else "model_entities": partial(
            model.entities, arguments.video, box, arguments.k, "" if model.prompts else arguments.text
        )
        for model in models
        if model.names_entities
    }
    if not ranks:
        raise InputError(
            f"{folder}: this {models[0].folder.task} model names no entities, and no prompter with embedded entities "
            "was found for it; name a train_prompter, cache_prompts or pretrain artifact"
        )
    print_ranked(arguments, {"box": list(box)}, ranks)


def import_model(arguments: argparse.Namespace) -> None:
    from alpro.models.import_checkpoint import import_checkpoint

    imported = import_checkpoint(
        arguments.file,
        arguments.out,
        arguments.task,
        arguments.tokenizer,
        arguments.words,
        max_text_tokens=arguments.max_text_tokens,
    )
    video, text = imported.config.video, imported.config.text
    print(f"{arguments.out}: {imported.read} tensors read")
    print(
        f"  video {video.image_size} x {video.image_size}, patch {video.patch_size}, {video.frames} frames, "
        f"{video.depth} blocks; text {text.fusion_layer} + {text.depth - text.fusion_layer} layers; width {video.width}"
    )
    for what, keys in (("not used by the model", imported.unused), ("unknown", imported.unknown)):
        if keys:
            print(f"  {what}: {len(keys)} tensors")
            print("".join(f"    {key}\n" for key in sorted(keys)), end="")
    for remark in imported.remarks:
        print(f"  {remark}")


def export_model(arguments: argparse.Namespace) -> None:
    from alpro import Model
    from alpro.pipeline.reports.model_card import model_card
    from alpro.stages.inference.export import export
    from alpro.stages.inference.find import find_prompter

    folder = model_path(arguments, arguments.model).resolve()
    if arguments.folder.exists():  # before the model is loaded
        raise InputError(f"{arguments.folder}: exists already; choose another folder")
    inside, prompts = find_prompter(folder)
    model = Model.from_pretrained(inside, prompts, device="cpu")
    export(model, arguments.folder, model_card(inside, model.folder, arguments.folder.name, arguments.license))
    print(f"{arguments.folder}: a {model.folder.task} model for transformers; README.md is its model card")


def print_ranked(
    arguments: argparse.Namespace, about: dict[str, Any], ranks: Mapping[str, Callable[[], list[tuple[str, float]]]]
) -> None:
    """Prints words with their probabilities, best first, of each model. Raises InputError if the video cannot be
    decoded."""
    from alpro.shards.decoding.decode import DecodeError

    try:
        ranked = {key: rank() for key, rank in ranks.items()}
    except DecodeError as error:
        file, _, detail = error.detail.partition(": ")  # the decoder's message
        raise InputError(f"{file}: {error.reason}: {detail}".removesuffix(": ")) from error
    if arguments.json:
        rows = {key: [{"text": word, "probability": p} for word, p in words] for key, words in ranked.items()}
        print(json.dumps({"video": without_credentials(arguments.video), **about, **rows}))
        return
    width = max(len(word) for words in ranked.values() for word, _ in words)
    for key, words in ranked.items():
        if len(ranked) > 1:
            print("prompter:" if key == "entities" else "model:")
        for word, probability in words:
            print(f"{word:{width}}  {probability:.3f}")


def register_model(arguments: argparse.Namespace) -> None:
    from alpro.pipeline.tracking.registry import register

    workspace = arguments.workspace.resolve()
    uri = arguments.tracking_uri or f"sqlite:///{workspace / 'mlflow.db'}"
    artifact = find_artifact(arguments.model, workspace)
    version = register(uri, workspace / "mlflow", *artifact, arguments.name, arguments.alias)
    loaded = f"models:/{arguments.name}{'@' + arguments.alias if arguments.alias else '/' + version}"
    print(f"{arguments.name}, version {version}; load it with mlflow.pyfunc.load_model({loaded!r})")
