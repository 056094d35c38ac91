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

from shards.schema import InputError
from shards.storage import AT_ONCE, Location, exists, fetch_file, join, read_bytes, resolve, send_file, write_bytes

CONTENTS = "contents.json"
OF_THIS_MACHINE = {"work.json"}  # it names folders of the machine that made the artifact


class Contents(BaseModel):
    """Which folder counts, and the size of each file in it, in bytes."""

    folder: str = Field(pattern="^[0-9a-f]{12}$")
    files: dict[str, int]


def is_shared(place: Location) -> bool:
    """Whether an artifact is there. Raises OSError where the place cannot be reached."""
    return exists(join(place, CONTENTS))


def send(folder: Path, place: Location, but: Container[str] = ()) -> None:
    """Copies an artifact's folder, `but` some folders in it, to its place, unless one is there. Raises OSError; what
    was sent then counts for nothing."""
    if is_shared(place):
        return
    there = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OF_THIS_MACHINE)
    found = [path for path in there if path.relative_to(folder).parts[0] not in but]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    making = uuid.uuid4().hex[:12]

    def one(name: str) -> None:
        send_file(folder / name, join(place, f"{making}/{name}"))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, files))
    contents = Contents(folder=making, files=files)
    write_bytes(join(place, CONTENTS), contents.model_dump_json(indent=1).encode())


def fetch(place: Location, folder: Path, temporary: Path) -> bool:
    """Copies an artifact from its place to `folder`, in the place of what is there; False where none is there.

    Files go to a folder below `temporary` first; one that was left in the middle is gone on with. Raises OSError, and
    InputError where what is there is damaged.
    """
    try:
        contents = Contents.model_validate_json(read_bytes(join(place, CONTENTS)))
    except FileNotFoundError:
        return False
    except ValidationError as error:
        raise InputError(f"{join(place, CONTENTS)}: damaged; delete it to have the artifact sent again") from error
    arriving = temporary / f"{folder.name}-{contents.folder}"

    def one(name: str) -> None:
        target = resolve(arriving, name)
        assert isinstance(target, Path)
        source, size = join(place, f"{contents.folder}/{name}"), contents.files[name]
        if target.is_file() and target.stat().st_size == size:
            return
        fetch_file(source, target)
        if (got := target.stat().st_size) != size:
            raise InputError(f"{source}: {got} bytes, {size} expected; delete {place} to have it made again")

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
