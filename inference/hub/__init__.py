"""The classes of an exported model for `transformers`. `export.py` writes them beside the weights,
with the modules that they import, so that they run without this package."""
