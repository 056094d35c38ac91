"""Runs a stage: its process, its worker processes and its progress bar."""
