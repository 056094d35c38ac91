"""The page of `alpro model demo`. Gradio is imported by `page.py` only."""
