"""Logs runs to MLflow, and registers models there."""

import logging
import os

# MLflow reads these variables when it is imported. A server that hangs delays each call by two
# timeouts, and Ctrl-C by a few calls: Slurm waits two minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

# Hide "Creating initial MLflow database tables...", retries and tracebacks: the tracker reports a
# failed call once.
for _name in ("mlflow.store", "mlflow.system_metrics", "alembic", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
