"""Configurations: TOML files and changes, validated."""
