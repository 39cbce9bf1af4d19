"""Headrace: an AI inference platform. What is exported here is for `model.py` files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from headrace.domain.errors import InvalidRequest
    from headrace.domain.models import TensorSpec
    from headrace.ports.python_model import LoadContext, Model

__all__ = ["InvalidRequest", "LoadContext", "Model", "TensorSpec"]
_HOMES: Final = {
    "InvalidRequest": "headrace.domain.errors",
    "LoadContext": "headrace.ports.python_model",
    "Model": "headrace.ports.python_model",
    "TensorSpec": "headrace.domain.models",
}


def __getattr__(name: str) -> Any:
    """Found when it is asked for: the program loads this first, and numpy takes its time."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
