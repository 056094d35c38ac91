"""The report, tables of results, and MLflow."""
