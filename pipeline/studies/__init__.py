"""Studies: variants of a configuration with several seeds, and their scores."""
