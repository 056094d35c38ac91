"""`alpro index ...` and `alpro search`: an index of embedded videos."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpro.errors import InputError
from alpro.pipeline.cli.arguments import add_action, add_group, add_json, natural, positive, print_json, user_path
from alpro.pipeline.cli.model import add_shared, load, model_path, videos_at
from alpro.pipeline.cli.use import require_text

if TYPE_CHECKING:
    from alpro.inference.index import Index

MAX_REPORTED = 20  # rejected files that are printed; rejects.parquet has all of them


def add_index_commands(commands: Any) -> None:
    """`alpro index ...`, and `alpro search`."""
    actions = add_group(commands, "index", "add, remove and list the videos of an index")
    more = "Videos that it has are skipped, so the command also adds new ones and continues after an interruption."
    parser = add_action(actions, "add", add_to_index, "embed videos into an index for `alpro search`", more)
    add_index(parser)
    parser.add_argument(
        "videos", metavar="VIDEOS", help="a folder of videos and images, a manifest, or a decoded corpus"
    )
    help = "cut longer videos into windows of this length (of a new index)"
    parser.add_argument("--window", type=seconds, metavar="SECONDS", help=help)
    help = "time from one window to the next (default: half a window)"
    parser.add_argument("--stride", type=seconds, metavar="SECONDS", help=help)
    help = "columns of the manifest that a new index keeps for filters, such as date,project"
    parser.add_argument("--columns", type=names, default=(), metavar="NAMES", help=help)
    add_index_model(parser)
    add_shared(parser)
    more = "Their vectors and names are deleted at once; the files of the videos stay."
    parser = add_action(actions, "rm", remove_from_index, "remove videos from an index", more)
    add_index(parser)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file or a folder, a URL, or the id of a video")
    add_json(parser)
    parser = add_action(actions, "ls", list_index, "list the videos of an index")
    add_index(parser)
    help = "write a row for each clip, with its vector, to a .parquet"
    parser.add_argument("--out", type=user_path, metavar="FILE", help=help)
    add_json(parser)

    more = "All clips are ranked by the similarity of their embeddings and that of the text."
    parser = add_action(commands, "search", search_index, "search an index for the videos that fit a text best", more)
    add_index(parser)
    parser.add_argument("text", metavar="TEXT", help="what the videos should show")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="number of results (default: 10)")
    help = "decode this many of the most similar clips, and rank them by matching (default: 0)"
    parser.add_argument("--rerank", type=natural, default=0, metavar="N", help=help)
    help = "only clips that fit, such as kind=video or date>=2024-01-01; repeatable"
    parser.add_argument("--filter", action="append", default=[], metavar="CONDITION", dest="filters", help=help)
    add_nothing_below(parser)
    add_index_model(parser)
    add_shared(parser)


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=user_path, metavar="INDEX", help="the folder of the index")


def add_index_model(parser: argparse.ArgumentParser) -> None:
    help = "the model of a new index, or of one whose model has moved, named as for `alpro ask`"
    parser.add_argument("--model", default="", metavar="MODEL", help=help)


def add_nothing_below(parser: argparse.ArgumentParser) -> None:
    help = "say that nothing fits if no similarity reaches this one; `alpro eval` prints one"
    parser.add_argument("--nothing-below", type=similarity, metavar="SIMILARITY", help=help)


def seconds(text: str) -> float:
    """The type of arguments that are a time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value


def similarity(text: str) -> float:
    """The type of arguments that are a similarity."""
    value = float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a similarity, -1 to 1")
    return value


def names(text: str) -> tuple[str, ...]:
    """The type of arguments that are names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_to_index(arguments: argparse.Namespace) -> None:
    from alpro.inference.index import Index, read_about
    from alpro.inference.index_videos import add_videos, settings

    folder = arguments.index
    name = arguments.model or (read_about(folder).model if (folder / "index.json").is_file() else "")
    if not name:
        raise InputError(f"{folder}: no index yet; --model MODEL creates it")
    model = model_path(arguments, name)
    about = settings(folder, model, arguments.window, arguments.stride, arguments.columns)
    reported = 0

    def report(line: str) -> None:
        nonlocal reported
        reported += 1
        if reported <= MAX_REPORTED:
            print(f"rejected: {line}", file=sys.stderr)

    videos = videos_at(arguments, arguments.videos)
    counts = add_videos(folder, load(arguments, model), about, videos, report)
    if reported > MAX_REPORTED:
        print(f"rejected: {reported - MAX_REPORTED} more", file=sys.stderr)
    clips = len(Index.open(folder))
    if arguments.json:
        print(json.dumps({"clips": clips, **vars(counts)}))
    else:
        print(f"{folder}: {clips:,} clips")
        replaced = f" ({counts.replaced:,} changed)" if counts.replaced else ""
        print(f"  {counts.embedded:,} embedded{replaced}, {counts.skipped:,} unchanged since an earlier run")
        if counts.rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.reasons.items()))
            print(f"  {counts.rejected:,} rejected ({reasons}): {folder / 'rejects.parquet'}")
    if not clips:
        raise InputError(f"{folder}: none of the videos could be decoded, the index is empty")


def remove_from_index(arguments: argparse.Namespace) -> None:
    from alpro.inference.index_videos import remove_videos
    from alpro.inference.search import place_of

    removed = [place_of(item) for item in remove_videos(arguments.index, arguments.videos)]
    if arguments.json:
        print_json({"removed": removed})
    else:
        print(*removed, f"{arguments.index}: {len(removed):,} removed", sep="\n")


def list_index(arguments: argparse.Namespace) -> None:
    from alpro.inference.index import Index
    from alpro.inference.search import listed

    index = Index.open(arguments.index)
    if arguments.out:
        if arguments.out.suffix != ".parquet":
            raise InputError(f"--out {arguments.out}: the file must end with .parquet")
        index.write_vectors(arguments.out)
        print(f"{arguments.out}: {len(index):,} clips, {index.embeddings.shape[1]} numbers each")
        return
    hits, rejected = listed(index, len(index)).hits, index.rejects.num_rows
    if arguments.json:
        print_json({"model": index.about.model, "rejected": rejected, "clips": [hit.json() for hit in hits]})
        return
    print("".join(f"{hit.place}\n" for hit in hits), end="")
    line = f"{len(index):,} clips of {index.about.model}{f', {rejected:,} rejected' if rejected else ''}"
    print(line, file=sys.stderr)


def open_index(folder: Path) -> "Index":
    """Raises InputError if the index has nothing to search."""
    from alpro.inference.index import Index

    index = Index.open(folder)
    if not len(index):
        raise InputError(f"{folder}: the index is empty; `alpro index add` adds videos to it")
    return index


def search_index(arguments: argparse.Namespace) -> None:
    require_text(arguments.text)
    from alpro.inference.search import search

    index = open_index(arguments.index)
    name = model_path(arguments, arguments.model) if arguments.model else ""
    model = index.load_model(name, device=arguments.device, dtype=arguments.dtype)
    options = {name: getattr(arguments, name) for name in ("k", "filters", "rerank", "nothing_below")}
    found = search(index, model, arguments.text, **options)
    if arguments.json:
        print(json.dumps({"text": arguments.text, **found.json()}))
        return
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    print("rank  similarity  match  video" if found.matched else "rank  similarity  video")
    for rank, hit in enumerate(found.hits, 1):
        matched = f"{'' if hit.match is None else format(hit.match, '.3f'):>5}  " if found.matched else ""
        remarks = f" ({'; '.join(hit.remarks)})" if hit.remarks else ""
        print(f"{rank:4}  {hit.similarity:10.3f}  {matched}{hit.place}{remarks}")
    print(f"{found.clips:,} clips by similarity, {found.matched} by matching")
