"""A PostgreSQL server for `alpro up`, and where its password is found."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pipeline.started import wait_for

SECRET = "hush-of-postgres"


def program(name: str) -> str | None:
    """A program of PostgreSQL's server. Debian does not put them in PATH."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((str(path / name) for path in places if (path / name).is_file()), None) or shutil.which(name)


@contextmanager
def postgres(folder: Path, port: int) -> Iterator[str]:
    """A PostgreSQL server with the databases `prefect` and `mlflow`; yields `user:password@host:port`."""
    user: dict = {}
    if os.getuid() == 0:  # it refuses to run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, **user).strip())
    subprocess.run(["tee", folder / "pw"], input=SECRET, text=True, check=True, stdout=subprocess.DEVNULL, **user)
    options = ["-D", folder / "data", "-U", "alpro", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={folder / 'pw'}"]
    subprocess.run([program("initdb"), *options], check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    server = [program("postgres"), "-D", folder / "data", "-p", str(port), "-k", folder]
    process = subprocess.Popen([*server, "-c", "listen_addresses=127.0.0.1"], cwd=folder, **user)
    try:
        wait_for(lambda: create_databases(port), 300)
        yield f"alpro:{SECRET}@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


def create_databases(port: int) -> bool:
    import psycopg

    try:
        with psycopg.connect(
            host="127.0.0.1", port=port, user="alpro", password=SECRET, dbname="postgres", autocommit=True
        ) as connection:
            for name in ("prefect", "mlflow"):
                connection.execute(f"create database {name}")
    except psycopg.OperationalError:
        return False
    return True


def leaks(folder: Path) -> list[str]:
    """The files that contain the secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def stored(address: str, database: str) -> str:
    """All rows of all tables of a database."""
    import psycopg

    with psycopg.connect(f"postgresql://{address}/{database}") as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        assert len(tables) > 10
        return "\n".join(str(connection.execute(f'select * from "{name}"').fetchall()) for (name,) in tables)
