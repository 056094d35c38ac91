"""What keeps `alpro up` from working: ports, another `alpro up`, databases. Nothing is written, and messages contain no
password."""

import asyncio
import errno
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from alpro.credentials import has_credentials
from alpro.errors import InputError

PREFECT_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
MLFLOW_DATABASE = "MLFLOW_BACKEND_STORE_URI"
DATABASE_SECONDS = 20.0


def problems(workspace: Path, ports: dict[str, int]) -> Iterator[str]:
    """What keeps `alpro up` from working and what to do, one line each.

    Args:
        workspace: absolute; it need not exist.
        ports: the port of each server, by its option on the command line.
    """
    checks: list[Callable[[], object]] = [partial(check_port, name, port) for name, port in ports.items()]
    checks += [
        partial(check_different, ports),
        partial(check_alone, workspace),
        partial(check_prefect_database, workspace),
        partial(check_mlflow_database, workspace),
        check_databases_differ,
    ]
    for check in checks:
        try:
            check()
        except InputError as error:
            yield str(error)


def check_port(option: str, port: int, host: str = "127.0.0.1") -> None:
    """Raises InputError if a server could not listen on a port of an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise InputError(f"--host {host}: not an address of this machine ({error.strerror})") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"--host {host}: not an address of this machine ({error.strerror})") from error
            raise InputError(
                f"port {port} is in use or not allowed ({error.strerror}); choose another with {option}"
            ) from error


def check_different(ports: dict[str, int]) -> None:
    if len(set(ports.values())) < len(ports):
        raise InputError(f"{' and '.join(ports)} are the same port; choose another for one of them")


def lock(workspace: Path) -> FileLock:
    """The lock that `alpro up` holds in its workspace: two of them would run each other's deployments."""
    return FileLock(workspace / "up" / "lock", blocking=False)


def check_alone(workspace: Path) -> None:
    if not (workspace / "up" / "lock").exists():
        return
    try:
        with lock(workspace):
            pass
    except Timeout:
        raise InputError(f"alpro up already runs in {workspace}; stop it, or choose another with --workspace") from None


def check_prefect_database(workspace: Path) -> None:
    url = os.environ.get(PREFECT_DATABASE, "")
    if not url:
        home = Path(os.environ.get("PREFECT_HOME", workspace / "prefect"))
        return check_sqlite(home / "prefect.db")
    if not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
        raise InputError(f"{PREFECT_DATABASE}: does not start with postgresql+asyncpg:// or sqlite+aiosqlite://")
    from sqlalchemy.ext.asyncio import create_async_engine

    async def connect() -> None:
        engine = create_async_engine(url)
        try:
            async with asyncio.timeout(DATABASE_SECONDS), engine.connect():
                pass
        finally:
            await engine.dispose()

    check_connection(PREFECT_DATABASE, lambda: asyncio.run(connect()))


def check_mlflow_database(workspace: Path) -> None:
    url = os.environ.get(MLFLOW_DATABASE, "")
    if not url:
        return check_sqlite(workspace / "mlflow.db")
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    seconds = {"connect_timeout": int(DATABASE_SECONDS)} if url.startswith("postgresql") else {}

    def connect() -> None:
        create_engine(url, poolclass=NullPool, connect_args=seconds).connect().close()

    check_connection(MLFLOW_DATABASE, connect)


def check_connection(setting: str, connect: Callable[[], None]) -> None:
    """Raises InputError if a database cannot be connected to. Its message has no password."""
    try:
        connect()
    except ModuleNotFoundError as error:
        raise InputError(f"{setting}: no {error.name}; pip install 'alpro-pipeline[postgres]'") from error
    except Exception as error:  # of SQLAlchemy and of each driver
        lines = str(getattr(error, "orig", None) or error).splitlines() or ["no answer"]
        raise InputError(f"{setting}: cannot connect ({lines[0]}); start the database, or correct the URL") from error


def check_tracking_uri(uri: str) -> None:
    """Raises InputError if the address of an MLflow store contains a password: Prefect stores the parameters of runs,
    and messages name the store."""
    if has_credentials(uri):
        raise InputError(
            "tracking_uri: contains a user name or a password; leave them out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD for PostgreSQL"
        )


def check_sqlite(file: Path) -> None:
    """Raises InputError if an SQLite file exists and cannot be written, because of its permissions or its content."""
    if not file.exists():
        return
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=DATABASE_SECONDS)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise InputError(
            f"{file}: not usable ({error}); repair it, move it away, or use another --workspace"
        ) from error


def check_databases_differ() -> None:
    """Raises InputError if both servers would use one database: both have a table `alembic_version`."""
    addresses = {
        os.environ.get(name, "").partition("://")[2].rpartition("@")[2] for name in (PREFECT_DATABASE, MLFLOW_DATABASE)
    }
    if len(addresses) == 1 and addresses != {""}:
        raise InputError(f"{PREFECT_DATABASE} and {MLFLOW_DATABASE} are the same database; create one for each")
