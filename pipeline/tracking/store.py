"""The MLflow store of a workspace: an SQLite file and a folder of files, both made where the
workspace is."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from alpro.errors import MAX_REASON, InputError
from alpro.files import atomic_write, create_database
from alpro.locks import acquire, file_lock

REFILL = (
    "move it away: the next run makes a new one, and `alpro artifacts log` fills it"
)
# What the user can do, by an expression that the errors of a store match.
REMEDIES = {
    "not a database|malformed": f"; it is damaged: {REFILL}",
    "database is locked": "; another program writes it: run again, or find it with `fuser`",
    "Max retries exceeded": "; no server answers there: start it, or name another store",
}

FLOW_RUN = "prefect_flow_run"  # tag of MLflow's runs: the run of Prefect that writes it
# Options of MLflow's page of runs.
CHARTS = "?workflowType=machine_learning&compareRunsMode=CHART"


def store_uri(workspace: Path) -> str:
    """Return the address of the store of a workspace, an absolute path."""
    if "?" in str(workspace):  # it begins the options of an address
        raise InputError(
            f"{workspace}: a workspace's path has no '?'; choose another folder"
        )
    return f"sqlite:///{workspace / 'mlflow.db'}"


def open_experiment(uri: str, workspace: Path, name: str) -> tuple[MlflowClient, str]:
    """Open an experiment of a store, and create both if they do not exist.

    Args:
        workspace: Absolute path. The files of an SQLite store are below it.

    Returns:
        A client of the store, and the id of the experiment.

    Raises:
        InputError: If the store does not work, or if the experiment was deleted.
    """
    place = None  # A server chooses the place of its files.
    with one_line_errors(uri):
        if uri.startswith("sqlite:///"):
            files = (workspace / "mlflow").resolve()
            create_store(Path(uri.removeprefix("sqlite:///")), files)
            place = (files / name).as_uri()
        client = MlflowClient(uri)
        try:
            client.create_experiment(name, place)
        except MlflowException as error:  # another run may create it at the same time
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)

    assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"MLflow store {uri}: the experiment {name!r} was deleted; restore it, or choose "
            "another name: --set name=OTHER"
        )
    return client, experiment.experiment_id


def create_store(database: Path, files: Path) -> None:
    """Create an SQLite store if it does not exist.

    It gets its name when it is complete: MLflow can never open a store that lacks tables, because
    its process was killed or the disk was full.
    """
    # Two pipelines may start at the same time.
    lock = file_lock(database.with_name(f"{database.name}.lock"))
    acquire(lock)
    try:
        if not database.exists():
            with atomic_write(database) as temporary:
                create_database(temporary)
                uri = f"sqlite:///{temporary}"
                SqlAlchemyStore(uri, files.as_uri()).engine.dispose()
    finally:
        lock.release()


def find_store(workspace: Path) -> str:
    """Return the address of the store of a workspace. Raises InputError if the workspace has no store,
    which MLflow would create, or as `check_store` does."""
    if not (workspace / "mlflow.db").is_file():
        raise InputError(
            f"{workspace}: no MLflow store; `alpro run` creates it, or name another by --tracking-uri"
        )
    return check_store(workspace)


def check_store(workspace: Path) -> str:
    """Return the address of the store of a workspace, after a check that the store, if there is
    one, was made where it is.

    It has absolute addresses of its files: a copy would write into the folder of the original.

    Args:
        workspace: Absolute path.

    Raises:
        InputError: If the store was made in another folder, or cannot be read.
    """
    uri = store_uri(workspace)
    database = workspace / "mlflow.db"
    if not database.is_file():  # The client would create one.
        return uri
    with one_line_errors(uri):
        # MLflow would begin a new store in it, without the earlier runs.
        if not database.stat().st_size:
            raise ValueError("not a database, but an empty file")
        # The first experiment, which cannot be deleted, is made with the store.
        location = MlflowClient(uri).get_experiment("0").artifact_location

    own = (workspace / "mlflow" / "0").resolve().as_uri()
    if re.fullmatch("file:.*/mlflow/0", location) and location != own:
        raise InputError(
            f"MLflow store {database}: its files are in {location}, where it was made "
            f"before this workspace was copied or moved; {REFILL}"
        )
    return uri


def charts_page(uri: str) -> str:
    """Return the address of the charts of the newest run's experiment, below a server's address;
    empty without a run.

    MLflow's start page leads to the traces of applications.

    Raises:
        InputError: If the store does not work.
    """
    client = MlflowClient(uri)
    with one_line_errors(uri):
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(
            experiments, order_by=["attributes.start_time DESC"], max_results=1
        )
    return f"/#/experiments/{runs[0].info.experiment_id}/runs{CHARTS}" if runs else ""


def end_runs(uri: str, flow_runs: Iterable[str]) -> None:
    """End what runs of Prefect that were killed left running, as KILLED.

    Raises:
        InputError: If the store does not work.
    """
    client = MlflowClient(uri)
    with one_line_errors(uri):
        experiments = [one.experiment_id for one in client.search_experiments()]
        for flow_run in flow_runs:
            query = f"attributes.status = 'RUNNING' and tags.{FLOW_RUN} = '{flow_run}'"
            for run in client.search_runs(experiments, query):
                client.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Raise any error of the body, of MLflow, SQLAlchemy, alembic or the network, as an InputError
    on a store that does not work, with what the user can do."""
    try:
        yield
    except Exception as error:
        # The first line is the reason; SQLAlchemy appends the query.
        reason = str(error).partition("\n")[0]
        remedies = [text for kind, text in REMEDIES.items() if re.search(kind, reason)]
        line = f"{reason[:MAX_REASON]}{''.join(remedies)}"
        raise InputError(f"MLflow store {uri}: {line}") from error
