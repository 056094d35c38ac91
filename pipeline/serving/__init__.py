"""The page and the API of `alpro serve`. Gradio is imported by `page.py` and `server.py` only."""
