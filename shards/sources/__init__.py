"""Where items come from: manifests, annotation files and downloaded shards, their checks, and the
plan of decoding."""
