"""The page of `alpro demo`. Gradio is imported by `page.py` only."""
