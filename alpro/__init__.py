"""ALPRO as a staged pipeline. `from alpro import Model, Searcher` is the Python interface.

The folder of the package has modules that all rooms use, and a link to each room: `alpro/models` is
`models`. Only this file imports from rooms above it, and only when a name is used: importing torch
takes seconds, and the command line does not need it.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alpro.inference.index import Index
    from alpro.inference.model import Model
    from alpro.inference.search import Searcher

__all__ = ["Index", "Model", "Searcher", "__version__"]

MODULES = {
    "Index": "alpro.inference.index",
    "Model": "alpro.inference.model",
    "Searcher": "alpro.inference.search",
}

try:
    __version__ = version("alpro-pipeline")
except PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
