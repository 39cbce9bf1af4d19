"""Headrace: an AI inference platform. `Model` and `TensorSpec` are for `model.py` files."""

from __future__ import annotations

from headrace.domain.models import TensorSpec
from headrace.ports.python_model import LoadContext, Model

__all__ = ["LoadContext", "Model", "TensorSpec"]
