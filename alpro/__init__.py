"""ALPRO as a staged pipeline. `from alpro import Index, Model` is the Python interface to a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alpro.inference.index import Index
    from alpro.inference.model import Model

__all__ = ["Index", "Model"]


def __getattr__(name: str) -> Any:
    """Imports torch only if a model is used: the command line does not need it."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"alpro.inference.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
