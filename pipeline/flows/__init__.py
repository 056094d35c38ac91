"""The pipeline as Prefect flows and tasks."""
