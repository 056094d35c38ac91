"""What each stage reads and writes. Knows models and shards; does not know Prefect, nor who runs it and where."""
