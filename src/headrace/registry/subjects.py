"""How entities are called in messages and in the audit trail: their path below /api/v1."""

from __future__ import annotations

from headrace.domain.catalog import Alias, ApiKey, Endpoint, Entity, Model, Route, Version


def subject(entity: Entity) -> str:
    """The path of an entity."""
    match entity:
        case Model():
            return model_subject(entity.name)
        case Version():
            return version_subject(entity.model, entity.version)
        case Alias():
            return alias_subject(entity.model, entity.alias)
        case Endpoint():
            return f"endpoints/{entity.name}"
        case Route():
            return f"routes/{entity.name}"
        case ApiKey():
            return f"keys/{entity.id}"


def model_subject(model: str) -> str:
    """The path of a model."""
    return f"models/{model}"


def version_subject(model: str, version: str) -> str:
    """The path of a version."""
    return f"models/{model}/versions/{version}"


def alias_subject(model: str, alias: str) -> str:
    """The path of an alias."""
    return f"models/{model}/aliases/{alias}"
