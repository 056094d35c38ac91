"""Labeled videos of any data, for `alpro eval`: a decoded corpus, a manifest or a folder."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from alpro.artifact import check_artifact, read_record
from alpro.errors import InputError
from alpro.inference.scan import is_corpus
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.schema import Reject, Row
from alpro.shards.sources.scan import scan_source
from alpro.shards.storage import Location, absolute
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.protocol import also_in_training

ALL_VIDEOS = (
    "all: the data names no split, and no record says that a model trained on it"
)


def read_labeled(
    source: Location,
    split: str,
    models: Sequence[Path] = (),
    column: str = "captions",
) -> tuple[Gallery, str]:
    """Read the videos with captions or questions of a decoded corpus, a manifest or a folder.

    A corpus gives the videos of the split that are not also in training, and a manifest with a
    column `split` the videos of the split. Any other source gives all of its videos, unless some of
    the models were trained on some of them: then it gives what the corpora of those trainings do.

    Args:
        source: The data.
        split: Split to read.
        models: Folders of models that will be scored.
        column: The texts: captions or questions.

    Returns:
        The videos with their texts, and which videos of the data these are.

    Raises:
        InputError: If there is no such video.
    """
    source = absolute(source)
    # The record is in the artifact, above its folder `model`.
    artifacts = [model.parent if model.name == "model" else model for model in models]
    videos: Sequence[Sample | Row]
    if is_corpus(source):
        videos, description = read_samples(source, split)
    else:
        videos, description = read_rows(source, split, artifacts)

    labels = [video.metadata for video in videos]
    labeled = [
        i for i, label in enumerate(labels) if label["captions"] or label["questions"]
    ]
    if not labeled:
        raise InputError(
            f"{source}: no video with a caption or a question ({description})"
        )
    ids = [str(label["id"]) for label in labels]
    items = [[*label[column]] for label in labels]
    has_captions = column == "captions"
    if has_captions:
        # A caption is right for the videos that `relevant` names, too, if they are of the split.
        items_of_id = dict(zip(ids, items, strict=True))
        for label in labels:
            for name in label["meta"].get("relevant") or ():
                items_of_id.get(name, []).extend(label["captions"])

    gallery = Gallery(videos, ids, items, merged=has_captions)
    return gallery.select(labeled), description


def read_samples(corpus: Location, split: str) -> tuple[ShardReader, str]:
    """Read the samples of a split of a corpus that are not also in training, and describe them."""
    description = f"split {split}"
    shared = set[str]()
    if isinstance(corpus, Path):
        # Without its table of overlap, a corpus of a run would give better scores.
        check_artifact(corpus)
        if (corpus / "overlap.parquet").is_file():
            shared = also_in_training(corpus, split)
    if shared:
        description += f", without {len(shared)} that are also in training"
    return ShardReader(corpus, split, exclude=shared), description


def read_rows(
    source: Location, split: str, artifacts: Sequence[Path]
) -> tuple[list[Row], str]:
    """Read the rows of a manifest or a folder that are in the split, and describe them.

    The rows name their splits; if they do not, those of the trainings on them by the artifacts
    decide: a row is of the split in each of them. Without one, all rows are read.

    Raises:
        InputError: If a corpus of a training is not there to tell.
    """
    rows = [row for row in scan_source(source)[1] if not isinstance(row, Reject)]
    if any(row.split for row in rows):
        return [row for row in rows if row.split == split], f"split {split}"

    # On videos that a model was trained on, its scores would be too good.
    description = ""
    test_ids = set[str]()
    other_ids = set[str]()
    for corpus in dict.fromkeys(chain.from_iterable(map(find_corpora, artifacts))):
        if not (corpus / "index.parquet").is_file():
            raise InputError(
                f"{source}: the data names no split, and {corpus}, on which a model was trained, "
                "is gone: add a column split"
            )
        known = set(ShardReader(corpus).column("id").to_pylist())
        if not known.isdisjoint(row.id for row in rows):
            samples, description = read_samples(corpus, split)
            ids = {*samples.column("id").to_pylist()}
            test_ids |= ids
            other_ids |= known - ids

    # A model from elsewhere has no record, and may have been trained on them nevertheless.
    if not description:
        return rows, ALL_VIDEOS
    # A row that the runs did not decode may be of a group that they were trained on.
    chosen = test_ids - other_ids
    rows = [row for row in rows if row.id in chosen]
    return rows, f"{description}, as in the model's own run"


def find_corpora(artifact: Path) -> Iterator[Path]:
    """Yield the corpora on which the model of an artifact was trained, and those on which its
    inputs were."""
    record = read_record(artifact)
    if record is None:
        return
    for source in record.inputs.values():
        # A model is trained on corpora and on other models, which have inputs of their own.
        folder = source.folder(artifact.parents[1])
        if source.stage in CORPUS_STAGES:
            yield folder
        else:
            yield from find_corpora(folder)
