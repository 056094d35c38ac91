"""Shares artifacts between machines in a folder or at a URL: one machine decodes, another trains.

Each upload of an artifact has a folder in `<place>/<stage>/<fingerprint>/`. contents.json, written last, names the
valid folder and lists its files, so concurrent uploads of two machines never mix. A download is checked against
contents.json and renamed to its final folder when it is complete.
"""

import json
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from alpro.artifact import RECORD
from alpro.errors import InputError
from alpro.files import checksum, make_folder, publish, read_json
from alpro.pipeline.store.checksums import check_sums, files_of
from alpro.shards.storage import (
    MAX_CONCURRENT_REQUESTS,
    Location,
    exists,
    fetch_file,
    join,
    read_bytes,
    resolve,
    send_file,
    subfolders,
    write_bytes,
)

FILE_LIST = "contents.json"


class SharedFiles(BaseModel):
    """The list of an uploaded artifact's files: the valid folder, and the SHA-256 of each file in it."""

    folder: str = Field(pattern="^[0-9a-f]{12}$")
    files: dict[str, str]


def is_shared(place: Location) -> bool:
    """Whether an artifact exists at a place. Raises OSError if the place cannot be reached."""
    return exists(join(place, FILE_LIST))


def shared_records(place: Location) -> Iterator[dict[str, Any]]:
    """The records of the artifacts at a place, `<place>/<fingerprint>/`. Raises OSError if it cannot be reached."""
    try:
        folders = subfolders(place)
    except FileNotFoundError:
        return
    for folder in folders:
        with suppress(FileNotFoundError, ValueError):  # incomplete, or corrupt
            file_list = SharedFiles.model_validate_json(read_bytes(join(folder, FILE_LIST)))
            yield json.loads(read_bytes(join(folder, f"{file_list.folder}/{RECORD}")))


def send(folder: Path, place: Location) -> None:
    """Uploads an artifact's folder, except unfinished work, unless it is already at the place. Raises OSError, and
    InputError if a file differs from the record; an incomplete upload is ignored."""
    if is_shared(place):
        return
    files, record = {**files_of(folder), RECORD: folder / RECORD}, read_json(folder / RECORD)
    upload = uuid.uuid4().hex[:12]

    def send_one(name: str) -> tuple[str, str]:
        sha256 = checksum(files[name])
        check_sums(record, {name: sha256}, folder)
        send_file(files[name], join(place, f"{upload}/{name}"))
        return name, sha256

    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads:
        file_list = SharedFiles(folder=upload, files=dict(threads.map(send_one, files)))
    write_bytes(join(place, FILE_LIST), file_list.model_dump_json(indent=1).encode())


def fetch(place: Location, folder: Path, temporary: Path) -> bool:
    """Downloads an artifact from its place and replaces `folder` with it. Returns False if it is not at the place.

    Files are first written to a folder in `temporary`; an interrupted download is resumed. Raises OSError, and
    InputError if the shared artifact is corrupt.
    """
    try:
        file_list = SharedFiles.model_validate_json(read_bytes(join(place, FILE_LIST)))
    except FileNotFoundError:
        return False
    except ValidationError as error:
        raise InputError(f"{join(place, FILE_LIST)}: corrupt; delete it to upload the artifact again") from error
    download = temporary / f"{folder.name}-{file_list.folder}"

    def fetch_one(name: str) -> None:
        target = resolve(download, name)
        assert isinstance(target, Path)
        source, sha256 = join(place, f"{file_list.folder}/{name}"), file_list.files[name]
        if target.is_file() and checksum(target) == sha256:
            return
        fetch_file(source, target)
        if checksum(target) != sha256:
            raise InputError(f"{source}: checksum mismatch; delete {place} to rebuild the artifact")

    with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads:
        list(threads.map(fetch_one, file_list.files))
    for stale in download.rglob(".*.part"):  # of a killed process
        stale.unlink()
    check_sums(read_json(download / RECORD), file_list.files, place)
    shutil.rmtree(folder, ignore_errors=True)  # unfinished work
    make_folder(folder.parent)
    publish(download, folder)
    for stale in temporary.glob(f"{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return True
