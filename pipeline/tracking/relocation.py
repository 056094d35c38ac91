"""A workspace that was copied or moved: the addresses of files in its MLflow store become those of
where it is now.

MLflow's SQLite store has the absolute address of each experiment, run and model. A copy would write
its pictures, reports and registered models into the folder of the original.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alpro.errors import InputError
from alpro.log import log

# Tables and columns of MLflow with addresses of files, and the tag with the folder of a logged
# model.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
PATHS = ("logged_model_tags", "tag_value")


def relocate(workspace: Path) -> None:
    """Makes the MLflow store of a workspace name the files of this workspace. A store that is where
    it was made, or that is not there, is only read. Raises InputError.

    workspace: absolute.
    """
    database = workspace / "mlflow.db"
    if not database.is_file():
        return

    try:
        with closing(sqlite3.connect(database, timeout=60)) as store:
            before = made_in(store)
            if before is None or before == (workspace / "mlflow").as_uri():
                return
            # One transaction: after an interruption, all addresses are as before.
            with store:
                move(store, before, workspace)
    except sqlite3.Error as error:
        advice = ""
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_READONLY"):
            advice = (
                "; this workspace was moved or copied, and the addresses in its store are the old "
                "ones: make it writable once, or copy it to a folder that is"
            )
        advice = advice or advice_on(error)
        raise InputError(f"MLflow store {database}: not usable: {error}{advice}") from error
    log.info(f"{database}: this workspace was moved or copied; its addresses are updated")


def advice_on(error: Exception) -> str:
    """What a person can do about a store that SQLite cannot read."""
    text = str(error)
    if "locked" in text:
        return "; another process writes to it: end it, or run the command again later"
    if "not a database" in text or "malformed" in text:
        return (
            "; it is damaged: move it away, and the next run makes a new one, which `alpro artifacts "
            "log` fills"
        )
    return ""


def made_in(store: sqlite3.Connection) -> str | None:
    """The address of the folder of files with which a store was created: that of MLflow's default
    experiment, or of any that is named as its folder. None if the store has no such experiment."""
    columns = {row[1] for row in store.execute("PRAGMA table_info(experiments)")}
    # SQLite describes a missing table by no rows, rather than by an error.
    if not columns:
        return None

    query = "SELECT experiment_id, name, artifact_location FROM experiments ORDER BY experiment_id"
    for identity, name, location in store.execute(query):
        # MLflow names an experiment's folder by its id; `Tracker.open` by its name.
        folder, _, last = (location or "").rpartition("/")
        if folder.startswith("file:") and last in (str(identity), Path(name).as_posix()):
            return folder
    return None


def move(store: sqlite3.Connection, before: str, workspace: Path) -> None:
    """Replaces the beginning of all addresses in the folder `before`, and of paths in its
    workspace."""
    after = (workspace / "mlflow").as_uri()
    for table, column in ADDRESSES:
        replace_prefix(store, table, column, before, after)

    # The tag has a path, not an address.
    old_workspace = Path(unquote(urlsplit(before).path)).parent
    replace_prefix(store, *PATHS, str(old_workspace), str(workspace))


def replace_prefix(
    store: sqlite3.Connection, table: str, column: str, before: str, after: str
) -> None:
    """Replaces the folder at the beginning of a column's values. Does nothing if this version of
    MLflow lacks it."""
    if column not in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}:
        return

    # Names of tables and columns cannot be parameters of SQL; these are constants of this module.
    # With the slash, a folder beside it such as `mlflow2` keeps its address.
    size = len(before)
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
        (after, size + 1, size + 1, before + "/"),
    )
