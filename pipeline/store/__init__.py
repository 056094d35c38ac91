"""Artifacts: their files, records and checksums, and sharing them between machines."""
