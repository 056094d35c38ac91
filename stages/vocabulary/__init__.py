"""Nouns of captions."""
