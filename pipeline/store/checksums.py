"""The files of an artifact: their sizes and SHA-256, recorded when it is built, and compared with
the files later."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alpro.artifact import RECORD, RECORD_DIGEST, THREADS, Record, record_digest
from alpro.files import checksum, read_json
from alpro.log import progress

LOCAL_FILES = {"work.json"}  # of the machine that created the artifact
# Only read by a resumed run; deleted from a finished artifact.
UNFINISHED = ("checkpoints", "parts")

Kind = Literal["damaged", "missing", "extra"]
# Size in bytes and sha256, by the file's name relative to the folder.
Contents = dict[str, dict[str, Any]]


class Problem(NamedTuple):
    """A file of an artifact that is not as recorded."""

    kind: Kind
    folder: str  # of the artifact
    name: str
    file: str
    detail: str


def files_of(folder: Path) -> dict[str, Path]:
    """The files of an artifact by their names relative to its folder: without its record,
    unfinished work, temporary files of killed processes, and files that only this machine can
    use."""
    found = {}
    # Sorted: records of equal folders are equal.
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        temporary = path.name.startswith(".") and path.suffix == ".part"
        ours = path.name in LOCAL_FILES or parts == (RECORD,) or parts[0] in UNFINISHED
        if not temporary and not ours and path.is_file():
            found["/".join(parts)] = path

    return found


def describe_contents(folder: Path, known: Mapping[str, str]) -> Contents:
    """Sizes and SHA-256 of an artifact's files. known: the SHA-256 of files that need not be read
    again."""
    files = files_of(folder)
    unread = [name for name in files if name not in known]

    # hashlib releases the GIL: threads read and hash side by side.
    with ThreadPoolExecutor(THREADS) as threads:
        values = {
            **known,
            **dict(
                zip(unread, threads.map(lambda name: checksum(files[name]), unread), strict=True)
            ),
        }

    return {
        name: {"size": path.stat().st_size, "sha256": values[name]} for name, path in files.items()
    }


def verify(artifacts: Sequence[tuple[Path, Record]]) -> Iterator[Problem]:
    """Compares the files of artifacts with their records. Artifacts whose files are as recorded
    yield nothing."""
    total = sum(len(record.contents) for _, record in artifacts)
    with progress("verifying", total, "files") as advance, ThreadPoolExecutor(THREADS) as threads:
        for folder, record in artifacts:
            if folder.name != record.fingerprint[:16]:
                yield Problem(
                    "damaged", folder.name, record.name, RECORD, "does not match its fingerprint"
                )

            if record.values.get(RECORD_DIGEST) != record_digest(record.values):
                yield Problem(
                    "damaged",
                    folder.name,
                    record.name,
                    RECORD,
                    "was changed after it was written",
                )

            recorded = record.contents
            # Also the files that only one of the two has.
            files = sorted(recorded.keys() | files_of(folder).keys())
            paths = [folder / file for file in files]
            for file, problem in zip(
                files, threads.map(difference, paths, map(recorded.get, files)), strict=True
            ):
                advance(1)
                if problem:
                    yield Problem(problem[0], folder.name, record.name, file, problem[1])


def unreadable_records(root: Path) -> Iterator[Problem]:
    """The artifacts in a store whose records are not JSON objects, so that they count as
    unfinished."""
    for path in sorted(root.glob(f"*/*/{RECORD}")):
        with suppress(OSError, ValueError):
            if isinstance(read_json(path), dict):
                continue

        yield Problem(
            "damaged", path.parent.name, path.parent.parent.name, RECORD, "cannot be read"
        )


def difference(path: Path, recorded: Mapping[str, Any] | None) -> tuple[Kind, str] | None:
    """How a file differs from its record; None if it does not."""
    if recorded is None:
        return "extra", ""
    try:
        # The size first: it is known without reading.
        if (size := path.stat().st_size) != recorded["size"]:
            return "damaged", f"{size} bytes instead of {recorded['size']}"
        return (
            None
            if checksum(path) == recorded["sha256"]
            else ("damaged", "its SHA-256 differs from the record")
        )
    except FileNotFoundError:
        return "missing", ""
    except OSError as error:
        return "damaged", f"cannot be read: {error.strerror}"


def measure_folder(folder: Path) -> int:
    """Return the bytes of a folder, also of files that other folders share."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
