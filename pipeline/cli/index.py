"""`alpro index ...` and `alpro search`: an index of embedded videos."""

import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from alpro.errors import InputError
from alpro.files import read_text
from alpro.log import printable
from alpro.names import record_index
from alpro.pipeline.cli.options import Count, File, Json, ModelOptions, print_json

if TYPE_CHECKING:
    from alpro.inference.index import Index
    from alpro.inference.search import SearchResult

group = App(name="index", help="Add, remove and list the videos of an index.")
IndexFolder = Annotated[File, Parameter(help="The folder of the index.")]
IndexModel = Annotated[
    str,
    Parameter(
        help="The model of a new index, or of one whose model has moved, named as for `alpro model "
        "ask`."
    ),
]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lt=float("inf")))]
Rerank = Annotated[
    int | None,
    Parameter(
        help="Decode this many of the most similar clips, and rank them by matching; by default 20 "
        "if that was better "
        "when the model was validated, else 0.",
        validator=Number(gte=0),
    ),
]
NothingBelow = Annotated[
    float | None,
    Parameter(
        help="Warn if no clip is that similar; see `alpro eval`.", validator=Number(gte=-1, lte=1)
    ),
]
SHOWN_CAPTION = 60  # characters of a caption in a table
MAX_REPORTED = 20  # rejected files that are printed; rejects.parquet has all of them


@group.command(name="add")
def add_to_index(
    index: IndexFolder,
    videos: str,
    /,
    *,
    window: Seconds | None = None,
    stride: Seconds | None = None,
    columns: str = "",
    model: IndexModel = "",
    models: ModelOptions = ModelOptions(),
) -> None:
    """Embed videos into an index for `alpro search`.

    Videos that it has are skipped, so the command also adds new ones and continues after an
    interruption.

    Args:
        videos: A folder of videos and images, a manifest, or a decoded corpus.
        window: Cut longer videos into windows of this many seconds (of a new index).
        stride: Seconds from one window to the next; by default half a window.
        columns: Columns of the manifest that a new index keeps for filters, such as date,project.
    """
    from alpro.inference.index import Index, read_about
    from alpro.inference.index_videos import add_videos, settings

    name = model
    if not name and (index / "index.json").is_file():
        name = read_about(index).model
    if not name:
        raise InputError(f"{index}: no index yet; --model MODEL creates it")

    found = models.videos(videos)
    folder = models.folder(name)
    names = tuple(column.strip() for column in columns.split(",") if column.strip())
    about = settings(index, folder, window, stride, names)

    # The model is loaded when nothing else can be wrong: that takes longest.
    rejected: list[str] = []
    counts = add_videos(index, models.load(folder), about, found, rejected.append)
    # `alpro artifacts gc` keeps the models of these indexes.
    record_index(models.workspace, index)

    for line in rejected[:MAX_REPORTED]:
        print(f"rejected: {printable(line)}", file=sys.stderr)

    added = Index.open(index)
    clips = len(added)
    captions = clips - added.items["caption"].null_count
    print(f"{index}: {clips:,} clips, {captions:,} of them with a caption")
    print(
        f"  {counts.embedded:,} embedded ({counts.replaced:,} changed), {counts.skipped:,} "
        f"unchanged"
    )

    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.reasons.items()))
    where = f" ({reasons}): {index}/rejects.parquet" if reasons else ""
    print(f"  {counts.rejected:,} rejected{where}")

    if not clips:
        raise InputError(f"{index}: none of the videos could be decoded, the index is empty")


@group.command(name="rm")
def remove_from_index(index: IndexFolder, video: str, /, *more: str) -> None:
    """Remove videos from an index.

    Their vectors and names are deleted at once; the files of the videos stay.

    Args:
        video: A file or a folder, a URL, or the id of a video.
        more: Further ones.
    """
    from alpro.inference.index_videos import remove_videos
    from alpro.inference.search import item_location

    removed = remove_videos(index, [video, *more])
    for item in removed:
        print(printable(item_location(item)))
    print(f"{index}: {len(removed):,} removed")


@group.command(name="ls")
def list_index(index: IndexFolder, /, *, json: Json = False) -> None:
    """List the videos of an index."""
    from alpro.inference.index import Index
    from alpro.inference.search import list_clips

    opened = Index.open(index)
    hits = list_clips(opened, k=len(opened)).hits
    rejected = opened.rejects.num_rows

    if json:
        clips = [hit.json() for hit in hits]
        print_json({"model": opened.about.model, "rejected": rejected, "clips": clips})
        return

    for hit in hits:
        print(printable(hit.location))
    # Apart from the list, which a program may read.
    print(f"{len(opened):,} clips of {opened.about.model}, {rejected:,} rejected", file=sys.stderr)


def search(  # noqa: PLR0913 - options of a command
    index: IndexFolder,
    word: str,
    /,
    *words: str,
    k: Annotated[Count, Parameter(name=("-k", "--results"))] = 10,
    rerank: Rerank = None,
    filter: tuple[str, ...] = (),
    nothing_below: NothingBelow = None,
    model: IndexModel = "",
    json: Json = False,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Search an index for the videos that fit a text best.

    All clips are ranked by the similarity of their embeddings and that of the text. A line names
    words that the model does not know.

    Args:
        word: What the videos should show; @FILE for a file with a text on each line, whose hits are
            one table.
        words: Further words of the text.
        k: Number of results.
        filter: Only clips that fit, such as kind=video, duration<10, or a word of the caption;
            repeatable.
    """
    from alpro.inference.search import search

    text = " ".join([word, *words])
    is_list = text.startswith("@")
    texts = read_texts(text[1:]) if is_list else [text]

    opened = open_index(index)
    # An index names its model; --model is for one that has moved since.
    found = models.find(model) if model else ""
    loaded = opened.load_model(found, device=models.device, dtype=models.dtype)

    results = []
    for one in texts:
        result = search(
            opened,
            loaded,
            one,
            k=k,
            filters=list(filter),
            rerank=rerank,
            nothing_below=nothing_below,
        )
        results.append((one, result))

    if json:
        for one, result in results:
            print(json_format.dumps({"text": one, **result.json()}))
    else:
        print_hits(results, with_text=is_list)


def read_texts(name: str) -> list[str]:
    """The texts of a file, one on each line. Raises InputError if it has none."""
    file = Path(name).expanduser()
    try:
        if not file.is_file():
            raise InputError(f"@{name}: no such file; @ stands before a file of texts")
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"@{name}: {reason}") from error

    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"@{name}: no text in this file; it takes one on each line")
    return texts


def print_hits(results: "Sequence[tuple[str, SearchResult]]", with_text: bool) -> None:
    """A table of the hits of one or more texts, and a line on what was searched."""
    from alpro.pipeline.reports.terminal import print_rows

    rows = []
    for text, result in results:
        if result.note:
            subject = f"{text}: " if with_text else ""
            print(f"note: {printable(subject + result.note)}", file=sys.stderr)
        for rank, hit in enumerate(result.hits, 1):
            remarks = f" ({'; '.join(hit.remarks)})" if hit.remarks else ""
            row = {
                "text": printable(shorten(text)) if with_text else "",
                "rank": rank,
                "similarity": f"{hit.similarity:.3f}",
                "match": "" if hit.match is None else f"{hit.match:.3f}",
                "video": printable(hit.location + remarks),
                "caption": printable(shorten(hit.caption or "")),
            }
            rows.append(row)
    print_rows(rows)

    _, last = results[-1]  # the filters are the same for all
    print(printable(last.summary))


def shorten(text: str) -> str:
    """A text of at most SHOWN_CAPTION characters."""
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= SHOWN_CAPTION else f"{one_line[: SHOWN_CAPTION - 1]}…"


def open_index(folder: Path) -> "Index":
    """Raises InputError if the index has nothing to search."""
    from alpro.inference.index import Index

    index = Index.open(folder)
    if not len(index):
        raise InputError(f"{folder}: the index is empty; `alpro index add` adds videos to it")
    return index
