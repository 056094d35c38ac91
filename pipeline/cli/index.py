"""`alpro index ...` and `alpro search`: an index of embedded videos."""

import json as json_format
import sys
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from alpro.errors import InputError
from alpro.log import printable
from alpro.pipeline.cli.options import Count, ModelOptions

group = App(name="index", help="Add, remove and list the videos of an index.")
IndexPlace = Annotated[
    str, Parameter(help="The index: a folder, or an address such as s3://bucket/index.")
]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lt=float("inf")))]
Rerank = Annotated[
    int | None,
    Parameter(
        help="Decode this many of the most similar clips, and rank them by matching; by default 20 "
        "if that was better when the model was validated, else 0.",
        validator=Number(gte=0),
    ),
]
SHOWN_CAPTION = 60  # characters of a caption in a table


@group.command(name="add")
def add_to_index(  # noqa: PLR0913 - options of a command
    index: IndexPlace,
    videos: str,
    /,
    *,
    window: Seconds | None = None,
    stride: Seconds | None = None,
    columns: str = "",
    scheduler: str = "",
    model: str = "",
    models: ModelOptions = ModelOptions(),
) -> None:
    """Embed videos into an index for `alpro search`.

    Videos that it has are skipped, but new captions and columns are taken. Videos whose files are
    gone, and those that their table no longer has, are removed. The command also continues after an
    interruption.

    Args:
        videos: A folder of videos and images, a manifest, or a decoded corpus, whose table is read.
        window: Split longer videos into windows of this many seconds (of a new index).
        stride: Seconds from one window to the next; by default half a window.
        columns: Columns of the manifest that a new index keeps for conditions, such as
            date,project.
        scheduler: Address of a Dask scheduler, such as tcp://host:8786, whose workers embed.
        model: The model of a new index, or of one whose model has moved, named as for `alpro model
            ask`.
    """
    from alpro.inference.index import (
        Index,
        index_exists,
        record_index,
    )
    from alpro.inference.index_videos import Embedder, add_videos

    if model:
        found = models.find(model)
    elif index_exists(index):
        found = Index.open(index).find_model()
    else:
        raise InputError(f"{index}: no index yet; --model MODEL creates it")

    try:
        counts = add_videos(
            index,
            Embedder(found, models.device, models.dtype, scheduler),
            models.videos(videos),
            window,
            stride,
            columns=[column.strip() for column in columns.split(",") if column.strip()],
        )
    finally:
        # `alpro artifacts gc` keeps the models of these indexes, also if a run has failed.
        if index_exists(index):
            record_index(Index.open(index))
    if not index_exists(index):
        raise InputError(
            f"{index}: there is no index, as no video was embedded: {counts.reject}"
        )

    opened = Index.open(index)
    rejects = opened.count("reason IS NOT NULL")
    print(
        f"{index}: {len(opened):,} clips; {rejects:,} rejected (see `alpro index ls`)"
    )
    print(
        f"  {counts.embedded:,} embedded, {counts.updated:,} updated, "
        f"{counts.skipped:,} unchanged, {counts.removed:,} removed"
    )


@group.command(name="rm")
def remove_from_index(index: IndexPlace, video: str, /, *more: str) -> None:
    """Remove videos from an index.

    Their embeddings, captions and names are deleted from the disk at once. The files of the videos
    stay.

    Args:
        video: A file or a folder, a URL, or the id of a video.
        more: Further ones.
    """
    from alpro.inference.index import describe_location
    from alpro.inference.index_videos import remove_videos

    removed = remove_videos(index, [video, *more])
    for item in removed:
        print(printable(describe_location(item)))
    print(f"{index}: {len(removed):,} removed")


@group.command(name="ls")
def list_index(index: IndexPlace, /) -> None:
    """List the videos of an index, and the rejected files."""
    from alpro.inference.index import Index, describe_location

    opened = Index.open(index)
    for item in opened.rows():
        print(printable(describe_location(item)))
    # Printed apart from the list, which a program may read.
    for row in opened.rows("reason IS NOT NULL"):
        line = f"rejected: {row['path']}: {row['reason']} {row['detail']}"
        print(printable(line), file=sys.stderr)
    print(f"{len(opened):,} clips of {opened.settings.model}", file=sys.stderr)


def search(  # noqa: PLR0913 - options of a command
    index: IndexPlace,
    text: str,
    /,
    *more: str,
    k: Annotated[Count, Parameter(name=("-k", "--results"))] = 10,
    where: str = "",
    words: str = "",
    rerank: Rerank = None,
    exact: bool = False,
    model: str = "",
    json: bool = False,
    models: ModelOptions = ModelOptions(),
) -> None:
    """Search an index for the videos that fit a text best.

    Ranks all clips by the similarity between their embeddings and the text's.

    Args:
        text: What the videos should show.
        more: Further words of it.
        k: Number of results.
        where: A condition in SQL, such as "kind = 'video' AND duration < 10".
        words: Words that must all be in the caption, the file name or the id, such as "dog park".
        exact: Compare all clips, also in an index of more than a million.
        model: The model of INDEX, if it has moved.
        json: Print JSON instead of text.
    """
    from alpro.inference.index import describe_location
    from alpro.inference.search import Searcher
    from alpro.pipeline.reports.columns import print_rows

    # An index names its model; --model is for one that has moved since.
    found = models.find(model) if model else None
    searcher = Searcher.open(index, found, device=models.device, dtype=models.dtype)
    query = " ".join([text, *more])
    result = searcher.search(query, k, where, words, rerank=rerank, exact=exact)

    if json:
        # A line, as scripts read one for each search.
        print(json_format.dumps({"text": query, **result.json()}))
        return

    if result.note:
        print(f"note: {printable(result.note)}", file=sys.stderr)
    rows = []
    for rank, hit in enumerate(result.hits, 1):
        caption = " ".join((hit.item["caption"] or "").split())
        row = {
            "rank": rank,
            "similarity": f"{hit.similarity:.3f}",
            "match": "" if hit.match is None else f"{hit.match:.3f}",
            "video": printable(describe_location(hit.item)),
            "note": hit.note,
            "caption": printable(caption[:SHOWN_CAPTION]),
        }
        rows.append(row)
    print_rows(rows)
    print(f"{result.clips:,} of {result.total:,} clips searched")
