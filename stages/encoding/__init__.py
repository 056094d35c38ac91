"""Encoding of texts, videos and pairs of both: for evaluation, the prompts and inference."""
