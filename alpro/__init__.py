"""ALPRO as a staged pipeline. `from alpro import Model` is the Python interface to a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alpro.inference.model import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    """Imports torch only if a model is used: the command line does not need it."""
    if name == "Model":
        from alpro.inference.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
