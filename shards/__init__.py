"""Manifests, decoding, WebDataset shards, readers and sampling. Imports neither torch nor
stages."""
