"""Nouns and verbs of captions."""
