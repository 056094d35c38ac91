"""Artifacts in a place that machines share, a folder or a URL: one machine decodes, another trains.

`<place>/<stage>/<fingerprint>/` holds a folder for each time the artifact was sent, with its files, and contents.json,
written last, which says which folder counts and what is in it. So what two machines send at once never mixes: the last
contents.json names the files of one of them. What is fetched is checked against it, and has its name here when it is
whole.
"""

import os
import shutil
import uuid
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from alpro.errors import InputError
from alpro.files import checksum
from alpro.shards.storage import (
    AT_ONCE,
    Location,
    exists,
    fetch_file,
    join,
    read_bytes,
    resolve,
    send_file,
    write_bytes,
)

CONTENTS = "contents.json"
OF_THIS_MACHINE = {"work.json"}  # it names folders of the machine that made the artifact


class SharedFiles(BaseModel):
    """Which folder counts, and the SHA-256 of each file in it."""

    folder: str = Field(pattern="^[0-9a-f]{12}$")
    files: dict[str, str]


def is_shared(place: Location) -> bool:
    """Whether an artifact is there. Raises OSError where the place cannot be reached."""
    return exists(join(place, CONTENTS))


def send(folder: Path, place: Location, but: Container[str] = ()) -> None:
    """Copies an artifact's folder, `but` some folders in it, to its place, unless one is there. Raises OSError; what
    was sent then counts for nothing."""
    if is_shared(place):
        return
    there = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OF_THIS_MACHINE)
    files = [path for path in there if path.relative_to(folder).parts[0] not in but]
    making = uuid.uuid4().hex[:12]

    def one(path: Path) -> tuple[str, str]:
        name, sha256 = path.relative_to(folder).as_posix(), checksum(path)
        send_file(path, join(place, f"{making}/{name}"))
        return name, sha256

    with ThreadPoolExecutor(AT_ONCE) as threads:
        contents = SharedFiles(folder=making, files=dict(threads.map(one, files)))
    write_bytes(join(place, CONTENTS), contents.model_dump_json(indent=1).encode())


def fetch(place: Location, folder: Path, temporary: Path) -> bool:
    """Copies an artifact from its place to `folder`, in the place of what is there; False where none is there.

    Files go to a folder below `temporary` first; one that was left in the middle is gone on with. Raises OSError, and
    InputError where what is there is damaged.
    """
    try:
        contents = SharedFiles.model_validate_json(read_bytes(join(place, CONTENTS)))
    except FileNotFoundError:
        return False
    except ValidationError as error:
        raise InputError(f"{join(place, CONTENTS)}: damaged; delete it to have the artifact sent again") from error
    arriving = temporary / f"{folder.name}-{contents.folder}"

    def one(name: str) -> None:
        target = resolve(arriving, name)
        assert isinstance(target, Path)
        source, sha256 = join(place, f"{contents.folder}/{name}"), contents.files[name]
        if target.is_file() and checksum(target) == sha256:
            return
        fetch_file(source, target)
        if checksum(target) != sha256:
            raise InputError(f"{source}: not the bytes that were sent; delete {place} to have it made again")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, contents.files))
    for left in arriving.rglob(".*.part"):  # of a process that was killed
        left.unlink()
    shutil.rmtree(folder, ignore_errors=True)  # unfinished work, of no use now
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(arriving, folder)
    for left in temporary.glob(f"{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    return True
