"""The commands of `alpro model`: use a trained model. They print what `alpro.Model` computes."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.artifact_names import find_artifact
from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.inputs import check_text
from alpro.shards.storage import absolute

if TYPE_CHECKING:
    from alpro import Model
    from alpro.stages.inference.index_videos import Counts
    from alpro.stages.inference.search import Found

MAX_REPORTED = 20  # rejected files that are printed; rejects.parquet has all of them


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
    """`alpro model index`."""
    from alpro import Model
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
    model = Model.from_pretrained(folder, device=arguments.device, dtype=arguments.dtype)
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
    """`alpro model search`."""
    require_text(arguments.text)
    from time import perf_counter

    from alpro.stages.inference.index import Index
    from alpro.stages.inference.search import search

    started = perf_counter()
    index = Index.open(arguments.index)
    if not len(index):
        raise InputError(f"{arguments.index}: the index is empty; `alpro model index` adds videos to it")
    opened = perf_counter()
    name = str(model_path(arguments, arguments.model)) if arguments.model else ""
    model = index.load_model(name, device=arguments.device, dtype=arguments.dtype)
    loaded = perf_counter()
    found = search(index, model, arguments.text, arguments.k, arguments.rerank)
    found.seconds = {"index": opened - started, "model": loaded - opened, **found.seconds}
    print_found(arguments, found)


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
    """`alpro model ask`."""
    require_text(arguments.question, "question")
    from alpro.shards.decoding.decode import DecodeError
    from alpro.stages.inference.model import UNKNOWN

    model = load(arguments, model_path(arguments, arguments.model))
    try:
        answers = model.ask(arguments.video, arguments.question, arguments.k)
    except DecodeError as error:
        raise InputError(unreadable(error)) from error
    if not model.knows(arguments.question):
        print(f"note: {UNKNOWN}", file=sys.stderr)
    print_ranked(arguments, {"question": arguments.question}, "answers", answers)


def name_entities(arguments: argparse.Namespace) -> None:
    """`alpro model entities`."""
    from alpro.shards.decoding.decode import DecodeError
    from alpro.stages.inference.find import find_prompter

    folder = model_path(arguments, arguments.model)
    model = load(arguments, *find_prompter(folder, follow=True))
    if not model.prompts:
        raise InputError(
            f"{folder}: this {model.folder.task} model names no entities, and no prompter with embedded entities was "
            "found for it; name a train_prompter or cache_prompts artifact"
        )
    try:
        entities = model.entities(arguments.video, arguments.box, arguments.k)
    except DecodeError as error:
        raise InputError(unreadable(error)) from error
    print_ranked(arguments, {"box": list(arguments.box)}, "entities", entities)


def import_model(arguments: argparse.Namespace) -> None:
    """`alpro model import`."""
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
    """`alpro model export`."""
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


def unreadable(error: Any) -> str:
    """The line of a file that cannot be decoded: the file, the reason, the decoder's message."""
    file, _, detail = error.detail.partition(": ")
    return f"{file}: {error.reason}: {detail}".removesuffix(": ")


def print_ranked(
    arguments: argparse.Namespace, about: dict[str, Any], key: str, ranked: list[tuple[str, float]]
) -> None:
    """Prints words with their probabilities, best first."""
    if arguments.json:
        rows = [{"text": word, "probability": probability} for word, probability in ranked]
        print(json.dumps({"video": without_credentials(arguments.video), **about, key: rows}))
        return
    width = max(len(word) for word, _ in ranked)
    for word, probability in ranked:
        print(f"{word:{width}}  {probability:.3f}")


def demo(arguments: argparse.Namespace) -> None:
    """`alpro model demo`."""
    from alpro.pipeline.cli.demo import serve

    serve(arguments)


MODEL_COMMANDS = {
    "model index": index_videos,
    "model search": search_index,
    "model ask": ask,
    "model entities": name_entities,
    "model import": import_model,
    "model demo": demo,
    "model export": export_model,
}
