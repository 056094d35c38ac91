"""MLflow: runs, models and its registry. No other package imports mlflow."""
