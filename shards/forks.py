"""Connections to stores and `fork`, by which loading processes start. Importing this module is enough."""

import os

import fsspec


def keep_connections() -> None:
    """Before a fork: the child keeps the file systems that it inherits.

    fsspec would drop them there, which closes their connections, and also removes them from the selector of the event
    loop, which both processes share: the parent would wait for its next answer without end.
    """
    _kept.clear()
    classes = [fsspec.AbstractFileSystem]
    for cls in classes:
        classes += cls.__subclasses__()
        _kept.extend(vars(cls).get("_cache", {}).values())


_kept: list[fsspec.AbstractFileSystem] = []
os.register_at_fork(before=keep_connections)
