"""The prompts that stand for an entity (paper, section 3.2.2; the sets are the official code's)."""

_ARTICLES = ("a", "the", "one")
VIDEO_TEMPLATES = [
    f"A {what} of {article} {{}}."
    for what in ("footage", "video", "portrait", "video footage")
    for article in _ARTICLES
]
IMAGE_TEMPLATES = [
    f"A {what} of {article} {{}}."
    for what in ("photo", "picture", "good photo", "good picture")
    for article in _ARTICLES
]
