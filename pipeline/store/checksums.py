"""The files of an artifact: their sizes and SHA-256, recorded when it is built, and compared with the files later."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alpro.artifact import RECORD, SUM, THREADS, sum_of
from alpro.files import checksum, read_json
from alpro.log import progress

LOCAL_FILES = {"work.json"}  # of the machine that created the artifact
UNFINISHED = ("checkpoints", "parts")  # only read by a resumed run; deleted from a finished artifact

Contents = dict[str, dict[str, Any]]  # size in bytes and sha256, by the file's name relative to the folder


@dataclass(frozen=True)
class Problem:
    """A file of an artifact that is not as recorded."""

    kind: Literal["damaged", "missing", "extra"]
    folder: Path
    name: str  # of the artifact
    file: str
    detail: str = ""


def files_of(folder: Path) -> dict[str, Path]:
    """The files of an artifact by their names relative to its folder: without its record, unfinished work, temporary
    files of killed processes, and files that only this machine can use."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        temporary = path.name.startswith(".") and path.suffix == ".part"
        ours = path.name in LOCAL_FILES or parts == (RECORD,) or parts[0] in UNFINISHED
        if not temporary and not ours and path.is_file():
            found["/".join(parts)] = path
    return found


def describe_contents(folder: Path, known: Mapping[str, str]) -> Contents:
    """Sizes and SHA-256 of an artifact's files. known: the SHA-256 of files that need not be read again."""
    files = files_of(folder)
    unread = [name for name in files if name not in known]
    with ThreadPoolExecutor(THREADS) as threads:
        values = {**known, **dict(zip(unread, threads.map(lambda name: checksum(files[name]), unread), strict=True))}
    return {name: {"size": path.stat().st_size, "sha256": values[name]} for name, path in files.items()}


def verify(artifacts: Iterable[tuple[Path, dict[str, Any]]]) -> Iterator[Problem]:
    """Compares the files of artifacts with their records.

    Artifacts whose files are as recorded yield nothing.
    """
    jobs: list[tuple[Path, str, str, Path, dict[str, Any]]] = []
    for folder, record in artifacts:
        name = record["name"]
        if folder.name != record["fingerprint"][:16]:
            yield Problem("damaged", folder, name, RECORD, "does not match its fingerprint")
        if not record.keys() >= {"contents", SUM}:
            yield Problem("damaged", folder, name, RECORD, "has no checksums: of an earlier version, or changed")
        elif record[SUM] != sum_of(record):
            yield Problem("damaged", folder, name, RECORD, "was changed after it was written")
        if "contents" not in record:
            continue
        files = files_of(folder)
        for missing in sorted(record["contents"].keys() - files.keys()):
            yield Problem("missing", folder, name, missing)
        for extra in sorted(files.keys() - record["contents"].keys()):
            yield Problem("extra", folder, name, extra)
        common = files.keys() & record["contents"].keys()
        jobs += [(folder, name, file, files[file], record["contents"][file]) for file in sorted(common)]
    with progress("verifying", len(jobs), "files") as advance, ThreadPoolExecutor(THREADS) as threads:
        details = threads.map(lambda job: difference(job[3], job[4]), jobs)
        for (folder, name, file, _, _), detail in zip(jobs, details, strict=True):
            advance(1)
            if detail:
                yield Problem("damaged", folder, name, file, detail)


def unreadable_records(root: Path) -> list[Problem]:
    """The artifacts in a store whose records are not JSON objects, so that they count as unfinished."""
    problems = []
    for path in sorted(root.glob(f"*/*/{RECORD}")):
        try:
            readable = isinstance(read_json(path), dict)
        except (OSError, ValueError):
            readable = False
        if not readable:
            problems.append(Problem("damaged", path.parent, path.parent.parent.name, RECORD, "cannot be read"))
    return problems


def difference(path: Path, recorded: Mapping[str, Any]) -> str:
    """How a file differs from its record; empty if it does not."""
    try:
        if (size := path.stat().st_size) != recorded["size"]:
            return f"{size} bytes instead of {recorded['size']}"
        return "" if checksum(path) == recorded["sha256"] else "its SHA-256 differs from the record"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def size_of(folder: Path) -> int:
    """The bytes of a folder, also of files that other folders share."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
