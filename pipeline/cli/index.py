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
    from alpro.inference.index_videos import Counts
    from alpro.inference.search import Found

MAX_REPORTED = 20  # rejected files that are printed; rejects.parquet has all of them


def add_index_commands(commands: Any) -> None:
    """`alpro index ...`, and `alpro search`."""
    actions = add_group(commands, "index", "add, remove and list the videos of an index")
    more = "Videos that it has are skipped, so the command also adds new ones and continues after an interruption."
    parser = add_action(actions, "add", add_videos, "embed videos into an index for `alpro search`", more)
    add_index(parser)
    parser.add_argument(
        "videos", metavar="VIDEOS", help="a folder of videos and images, a manifest, or a decoded corpus"
    )
    add_windows(parser)
    help = "columns of the manifest that a new index keeps for filters, such as date,project"
    parser.add_argument("--columns", type=names, default=(), metavar="NAMES", help=help)
    add_index_model(parser)
    add_shared(parser)
    more = "Their vectors and names are deleted at once; the files of the videos stay."
    parser = add_action(actions, "rm", remove_videos, "remove videos from an index", more)
    add_index(parser)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a file or a folder, a URL, or the id of a video")
    add_json(parser)
    parser = add_action(actions, "ls", list_videos, "list the videos of an index")
    add_index(parser)
    help = "write a row for each clip, with its vector, to a .parquet"
    parser.add_argument("--out", type=user_path, metavar="FILE", help=help)
    add_json(parser)

    more = "All clips are ranked by similarity (VTC), then the best of them are decoded and ranked by matching (VTM)."
    parser = add_action(commands, "search", search_index, "search an index for the videos that fit a text best", more)
    add_index(parser)
    parser.add_argument("text", metavar="TEXT", help="what the videos should show")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="number of results (default: 10)")
    add_rerank(parser)
    help = "only clips that fit, such as kind=video or date>=2024-01-01; repeatable"
    parser.add_argument("--filter", action="append", default=[], metavar="CONDITION", dest="filters", help=help)
    add_nothing_below(parser)
    add_index_model(parser)
    add_shared(parser)


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=user_path, metavar="INDEX", help="the folder of the index")


def add_windows(parser: argparse.ArgumentParser) -> None:
    help = "cut longer videos into windows of this length (of a new index)"
    parser.add_argument("--window", type=seconds, metavar="SECONDS", help=help)
    help = "time from one window to the next (default: half a window)"
    parser.add_argument("--stride", type=seconds, metavar="SECONDS", help=help)


def seconds(text: str) -> float:
    """The type of arguments that are a time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value


def names(text: str) -> tuple[str, ...]:
    """The type of arguments that are names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_index_model(parser: argparse.ArgumentParser) -> None:
    help = "the model of a new index, or of one whose model has moved, named as for `alpro ask`"
    parser.add_argument("--model", default="", metavar="MODEL", help=help)


def add_rerank(parser: argparse.ArgumentParser) -> None:
    help = "number of clips ranked by matching (default: 20; 0: none)"
    parser.add_argument("--rerank", type=natural, default=20, metavar="N", help=help)


def add_nothing_below(parser: argparse.ArgumentParser) -> None:
    help = "say that nothing fits if no similarity reaches this one; `alpro eval` prints one"
    parser.add_argument("--nothing-below", type=float, metavar="SIMILARITY", help=help)


def add_videos(arguments: argparse.Namespace) -> None:
    from alpro.inference.find import model_digest
    from alpro.inference.index import About, check_digest, read_about
    from alpro.inference.index_videos import scan_videos, update_index

    before = read_about(arguments.index) if (arguments.index / "index.json").is_file() else None
    if not (name := arguments.model or (before.model if before else "")):
        raise InputError(f"{arguments.index}: no index yet; --model MODEL creates it")
    window, stride = arguments.window, arguments.stride or (arguments.window and arguments.window / 2)
    if stride and not (window and stride <= window):
        raise InputError("--stride needs a --window, and is not longer: a longer one would leave parts of videos out")
    videos = videos_at(arguments, arguments.videos)
    folder = model_path(arguments, name).resolve()
    digest = model_digest(folder)
    if before:  # before the model is loaded
        check_digest(arguments.index, before, folder, digest)
    columns = arguments.columns or (before.columns if before else ())
    items = scan_videos(videos, columns)
    sources = list(items) if isinstance(videos, Path) and videos.is_dir() else items  # else, its rows are streamed
    model = load(arguments, folder)
    setting = {"window": window, "stride": stride, "columns": columns}
    about = About(model=str(folder), digest=digest, embed_dim=model.embed_dim, **setting)
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
    from alpro.inference.index import Index

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


def remove_videos(arguments: argparse.Namespace) -> None:
    from alpro.inference.index_videos import remove_from_index
    from alpro.inference.search import hit_path

    removed = [hit_path(item) for item in remove_from_index(arguments.index, arguments.videos)]
    if arguments.json:
        print_json({"removed": removed})
    else:
        print(*removed, f"{arguments.index}: {len(removed):,} removed", sep="\n")


def list_videos(arguments: argparse.Namespace) -> None:
    from alpro.inference.index import Index, rows_of
    from alpro.inference.search import described, hit_path

    index = Index.open(arguments.index)
    if arguments.out:
        if arguments.out.suffix != ".parquet":
            raise InputError(f"--out {arguments.out}: the file must end with .parquet")
        index.write_vectors(arguments.out)
        print(f"{arguments.out}: {len(index):,} clips, {index.about.embed_dim} numbers each")
        return
    rows = (row for table in index.items for row in rows_of(table))
    if arguments.json:
        clips = [described(row) for row in rows]
        print_json({"model": index.about.model, "rejected": index.rejects().num_rows, "clips": clips})
        return
    for row in rows:
        print(hit_path(row))
    rejected = index.rejects().num_rows
    print(
        f"{len(index):,} clips of {index.about.model}{f', {rejected:,} rejected' if rejected else ''}", file=sys.stderr
    )


def search_index(arguments: argparse.Namespace) -> None:
    require_text(arguments.text)
    from time import perf_counter

    from alpro.inference.search import search

    started = perf_counter()
    index = open_index(arguments.index)
    opened = perf_counter()
    name = str(model_path(arguments, arguments.model)) if arguments.model else ""
    model = index.load_model(name, device=arguments.device, dtype=arguments.dtype)
    loaded = perf_counter()
    ranked = index, model, arguments.text, arguments.k, arguments.rerank
    found = search(*ranked, filters=arguments.filters, nothing_below=arguments.nothing_below)
    found.seconds = {"index": opened - started, "model": loaded - opened, **found.seconds}
    print_found(arguments, found)


def open_index(folder: Path) -> "Index":
    """Raises InputError if the index has nothing to search."""
    from alpro.inference.index import Index

    index = Index.open(folder)
    if not len(index):
        raise InputError(f"{folder}: the index is empty; `alpro index add` adds videos to it")
    return index


def print_found(arguments: argparse.Namespace, found: "Found") -> None:
    from alpro.inference.search import described, hit_path, neighbors

    if arguments.json:
        hits = [
            {"rank": rank, **described(hit.item)}
            | {"similarity": hit.similarity, "match": hit.match, "note": hit.note, "span": hit.span}
            for rank, hit in enumerate(found.hits, 1)
        ]
        counts = {
            "clips": found.clips,
            "matched": found.matched,
            "note": found.note,
            "nothing_fits": found.nothing_fits,
        }
        print(json.dumps({"text": arguments.text, **counts, "seconds": found.seconds, "hits": hits}))
        return
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    print("rank  similarity  match  video")
    for rank, hit in enumerate(found.hits, 1):
        matched = "" if hit.match is None else f"{hit.match:.3f}"
        notes = "; ".join(filter(None, (hit.note, neighbors(hit))))
        note = f" ({notes})" if notes else ""
        print(f"{rank:4}  {hit.similarity:10.3f}  {matched:>5}  {hit_path(hit.item)}{note}")
    times = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in found.seconds.items())
    print(f"{found.clips:,} clips by similarity, {found.matched} by matching: {times}")


def format_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
