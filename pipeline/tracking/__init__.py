"""Logs runs to MLflow, and registers models there."""

import logging
import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads both when it is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # some seconds

# "Creating initial MLflow database tables...", and the like.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# Each retry, and tracebacks of failed calls, which the tracker reports once.
for _name in ("urllib3.connectionpool", "mlflow.store.db.utils", "mlflow.system_metrics"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
