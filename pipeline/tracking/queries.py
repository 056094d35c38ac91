"""The page of the newest experiment of an MLflow store."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.tracking import MlflowClient

from alpro.errors import InputError
from alpro.pipeline.tracking.tracker import MODEL_TRAINING, VIEW


@contextmanager
def usable(uri: str) -> Iterator[MlflowClient]:
    """A client of a store. Its errors, and those of its database or server, become an InputError."""
    try:
        yield MlflowClient(uri)
    except Exception as error:
        raise InputError(f"MLflow store {uri}: not usable: {str(error).splitlines()[0]}") from error


def start_page(uri: str) -> str:
    """The path of the page of the newest experiment in MLflow's server, or of the list of experiments. Raises
    InputError."""
    with usable(uri) as client:
        newest = client.search_experiments(order_by=["last_update_time DESC"], max_results=1)
    if not newest:
        return f"/#/experiments?{MODEL_TRAINING}"
    return f"/#/experiments/{newest[0].experiment_id}/runs?{MODEL_TRAINING}&viewStateShareKey={VIEW}"
