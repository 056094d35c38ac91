"""Artifacts: their folders, records and checksums."""
