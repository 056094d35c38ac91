"""Nouns, word lists and word pieces."""
