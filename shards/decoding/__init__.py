"""Decodes videos and images to frames, within limits."""
