"""Media and samples: manifests, decoding, WebDataset shards, reading, sampling. Knows no torch module and no stage."""
