"""Units, tables and pictures of corpora, reuse of shards, and inspection of a corpus."""
