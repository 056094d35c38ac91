"""An artifact: a folder with a record, artifact.json, which is written last."""

from pathlib import Path
from typing import Any

from alpro.files import read_json
from alpro.log import log

RECORD = "artifact.json"
RECORD_VERSION = 2


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an artifact folder; None if there is no readable record, and so no artifact."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        log.warning(f"{path} is corrupt: its artifact is rebuilt")
        return None
    if record.get("version") != RECORD_VERSION:  # of an earlier version of this project
        return None
    return record
