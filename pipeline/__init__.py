"""Prefect, the order of the stages, configuration, the command line. Knows no tensor and no video."""
