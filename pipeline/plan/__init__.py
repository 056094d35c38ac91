"""The steps of a configuration, their fingerprints, and which of them have to run."""
