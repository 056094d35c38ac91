"""The official annotation files of the data sets, as rows: one a video, with everything that was said of it.

    MSRVTT, DiDeMo, MSVD retrieval   {"caption", "clip_name"}; a list of captions is one paragraph (DiDeMo)
    MSRVTT-QA, MSVD-QA               {"question", "answer", "video_id", "answer_type"}
    WebVid                           a table with videoid and name (the caption), page_dir or not
    CC3M                             a list of {"image", "caption"}; a list of captions is so many captions

Which form a file has is seen from its columns. What a file names is looked for in the folder of videos, with or without
an extension; a name without a folder also below it.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.manifest import question_type, read_manifest, read_records, sound
from shards.schema import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, InputError, Question, Reject, Row

NAMES = ("clip_name", "video_id", "videoid", "gif_name", "image", "video")  # columns that name a video or image
TEXTS = ("caption", "sentence", "name")  # columns that hold what was said of it


@dataclass
class Said:
    """Everything that one file says of one video."""

    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def read_source(data: Path, annotations: Mapping[str, Path]) -> tuple[list[Row], list[Reject]]:
    """The rows of a manifest or folder with its texts, or, where there are annotation files (by split), of these."""
    return read_annotations(data, annotations) if annotations else read_manifest(data)


def read_annotations(videos: Path, files: Mapping[str, Path]) -> tuple[list[Row], list[Reject]]:
    """Rows in the order of the files, one a video and split; and the lines that are no annotation.

    files: an annotation file for each split. A video that is named and not there is a row all the same, so that it
    ends among the rejects and is counted. Raises InputError where a file or the folder is missing or has no known form.
    """
    videos = Path(os.path.normpath(videos.absolute()))
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    found: dict[tuple[str, str], Said] = {}
    rejects: list[Reject] = []
    for split, file in files.items():
        if not file.is_file():
            raise InputError(f"{file}: no such annotation file ({split})")
        for where, record in read_records(file):
            told = record if isinstance(record, str) else collect(record, split, found, file)
            if told:
                rejects.append(Reject(id=f"{file.name} {where}", path="", reason=told))
    if not found:
        raise InputError(f"{', '.join(str(f) for f in files.values())}: no annotations")
    places = Places(videos)
    splits: dict[str, list[str]] = {}
    for split, name in found:
        splits.setdefault(name, []).append(split)
    rows = []
    for (split, name), said in found.items():
        identity = name if len(splits[name]) == 1 else f"{split}/{name}"
        try:
            path = places.find(name)
        except ValueError as error:
            rejects.append(Reject(id=identity, path="", reason=f"bad row: {error}"))
            continue
        rows.append(
            Row(
                id=identity,
                path=path,
                kind="image" if path.suffix.lower() in IMAGE_EXTENSIONS else "video",
                captions=tuple(said.captions),
                questions=tuple(said.questions),
                split=split,
                group=name,
            )
        )
    return rows, rejects


def collect(record: dict[str, Any], split: str, found: dict[tuple[str, str], Said], file: Path) -> str:
    """Adds one line to what is said of its video; returns why it cannot be, or nothing."""
    key = next((key for key in NAMES if key in record), None)
    text = next((key for key in TEXTS if key in record), None)
    asked = "question" in record and "answer" in record
    if key is None or not (text or asked):
        raise InputError(
            f"{file}: columns {', '.join(sorted(record))} are those of no known annotation file; known are caption "
            "with clip_name, question and answer with video_id, name with videoid, caption with image"
        )
    record = sound(record)
    name = "" if record[key] is None else str(record[key])
    if not Path(name).name or "\0" in name or ".." in Path(name).parts or Path(name).is_absolute():
        return f"bad row: {key} {name!r} names no file in the folder of videos"
    said = found.setdefault((split, name), Said())
    if asked:
        question, answer = (" ".join(str(record[part] or "").split()) for part in ("question", "answer"))
        if not question or not answer:
            return "bad row: a question without a text or an answer"
        kind = question_type(str(record.get("answer_type") or question.split()[0]))
        said.questions.append(Question(question=question, answer=answer, type=kind))
        return ""
    given = record[text] if text else None
    texts = given if isinstance(given, list) else [given]
    clean = [" ".join(str(one).split()) for one in texts if one and str(one).strip()]
    if not clean:
        return "bad row: no caption"
    said.captions += clean if key == "image" else [" ".join(clean)]
    return ""


class Places:
    """The media files of a folder, to be found by what annotations call them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.by_stem: dict[str, list[Path]] = {}
        for path in sorted(walk(folder)):
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, name: str) -> Path:
        """The file that a name means; where there is none, where it should be.

        The file of this name comes first, then this name with an extension, in the folder that it names. A name
        without a folder may also mean a file below. A name with a video's extension is never an image's, nor the other
        way round; one without means the video rather than the image. Raises ValueError where it could mean several.
        """
        exact = self.folder / name
        if is_file(exact):
            return exact
        ended = exact.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
        longer = self.by_stem.get(exact.name, [])
        candidates = [[path for path in longer if path.parent == exact.parent]]
        if exact.parent == self.folder:
            alike = self.by_stem.get(exact.stem, []) if ended else []  # with another extension, where it has one
            candidates += [[path for path in alike if path.name == exact.name], longer, alike]
        for paths in candidates:
            if found := self.one_of(paths, exact.suffix.lower()):
                return found
        return exact if ended else exact.with_name(f"{exact.name}.mp4")

    def one_of(self, paths: list[Path], extension: str) -> Path | None:
        """The first video, or else the first image, that a name with this extension can mean."""
        for same, other in ((VIDEO_EXTENSIONS, IMAGE_EXTENSIONS), (IMAGE_EXTENSIONS, VIDEO_EXTENSIONS)):
            found = [path for path in paths if path.suffix.lower() in same and extension not in other]
            if len({path.parent for path in found}) > 1:
                first, second = (path.relative_to(self.folder) for path in found[:2])
                raise ValueError(f"the name could mean {first} or {second}")
            if found:
                return found[0]
        return None


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def walk(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if path.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS:
                yield path
