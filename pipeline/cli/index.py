"""`alpro index ...` and `alpro search`: an index of embedded videos."""

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from alpro.errors import InputError
from alpro.pipeline.cli.options import Count, File, Json, Models, print_json

if TYPE_CHECKING:
    from alpro.inference.index import Index

group = App(name="index", help="Add, remove and list the videos of an index.")
IndexFolder = Annotated[File, Parameter(help="The folder of the index.")]
IndexModel = Annotated[
    str,
    Parameter(
        help="The model of a new index, or of one whose model has moved, named as for `alpro model ask`."
    ),
]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lt=float("inf")))]
Rerank = Annotated[
    int | None,
    Parameter(
        help="Decode this many of the most similar clips, and rank them by matching; by default 20 if that was better "
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
    models: Models = Models(),
) -> None:
    """Embed videos into an index for `alpro search`.

    Videos that it has are skipped, so the command also adds new ones and continues after an interruption.

    Args:
        videos: A folder of videos and images, a manifest, or a decoded corpus.
        window: Cut longer videos into windows of this many seconds (of a new index).
        stride: Seconds from one window to the next; by default half a window.
        columns: Columns of the manifest that a new index keeps for filters, such as date,project.
    """
    from alpro.inference.index import Index, read_about
    from alpro.inference.index_videos import add_videos, settings

    name = model or (read_about(index).model if (index / "index.json").is_file() else "")
    if not name:
        raise InputError(f"{index}: no index yet; --model MODEL creates it")
    found, rejected = models.videos(videos), list[str]()
    folder = models.folder(name)
    names = tuple(column.strip() for column in columns.split(",") if column.strip())
    about = settings(index, folder, window, stride, names)
    counts = add_videos(index, models.load(folder), about, found, rejected.append)
    for line in rejected[:MAX_REPORTED]:
        print(f"rejected: {line}", file=sys.stderr)
    clips = len(Index.open(index))
    print(f"{index}: {clips:,} clips")
    print(
        f"  {counts.embedded:,} embedded ({counts.replaced:,} changed), {counts.skipped:,} unchanged"
    )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.reasons.items()))
    print(
        f"  {counts.rejected:,} rejected{f' ({reasons}): {index}/rejects.parquet' if reasons else ''}"
    )
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
    from alpro.inference.search import place_of

    removed = [place_of(item) for item in remove_videos(index, [video, *more])]
    print(*removed, f"{index}: {len(removed):,} removed", sep="\n")


@group.command(name="ls")
def list_index(index: IndexFolder, /, *, json: Json = False) -> None:
    """List the videos of an index."""
    from alpro.inference.index import Index
    from alpro.inference.search import listed

    opened = Index.open(index)
    hits, rejected = listed(opened, len(opened)).hits, opened.rejects.num_rows
    if json:
        print_json(
            {
                "model": opened.about.model,
                "rejected": rejected,
                "clips": [hit.json() for hit in hits],
            }
        )
        return
    print("".join(f"{hit.place}\n" for hit in hits), end="")
    print(f"{len(opened):,} clips of {opened.about.model}, {rejected:,} rejected", file=sys.stderr)


def search(  # noqa: PLR0913 - options of a command
    index: IndexFolder,
    text: str,
    /,
    *,
    k: Annotated[Count, Parameter(name=("-k", "--results"))] = 10,
    rerank: Rerank = None,
    filter: tuple[str, ...] = (),
    nothing_below: NothingBelow = None,
    model: IndexModel = "",
    json: Json = False,
    models: Models = Models(),
) -> None:
    """Search an index for the videos that fit a text best.

    All clips are ranked by the similarity of their embeddings and that of the text. A line names words that the model
    does not know.

    Args:
        text: What the videos should show.
        k: Number of results.
        filter: Only clips that fit, such as kind=video or date>=2024-01-01; repeatable.
    """
    from alpro.inference.search import search
    from alpro.pipeline.reports.terminal import print_rows

    opened = open_index(index)
    loaded = opened.load_model(
        models.folder(model) if model else "", device=models.device, dtype=models.dtype
    )
    found = search(
        opened, loaded, text, k=k, filters=list(filter), rerank=rerank, nothing_below=nothing_below
    )
    if json:
        print(json_format.dumps({"text": text, **found.json()}))
        return
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    rows = [
        {
            "rank": rank,
            "similarity": f"{hit.similarity:.3f}",
            "match": "" if hit.match is None else f"{hit.match:.3f}",
            "video": hit.place + (f" ({'; '.join(hit.remarks)})" if hit.remarks else ""),
        }
        for rank, hit in enumerate(found.hits, 1)
    ]
    print_rows(rows)
    print(f"{found.clips:,} clips by similarity, {found.matched} by matching")


def open_index(folder: Path) -> "Index":
    """Raises InputError if the index has nothing to search."""
    from alpro.inference.index import Index

    index = Index.open(folder)
    if not len(index):
        raise InputError(f"{folder}: the index is empty; `alpro index add` adds videos to it")
    return index
