"""Headrace: an AI inference platform. What is exported here is for `model.py` files."""

from __future__ import annotations

from headrace.domain.errors import InvalidRequest
from headrace.domain.models import TensorSpec
from headrace.ports.python_model import LoadContext, Model

__all__ = ["InvalidRequest", "LoadContext", "Model", "TensorSpec"]
