"""Artifacts: fingerprints, records, the store, and sharing it between machines."""
