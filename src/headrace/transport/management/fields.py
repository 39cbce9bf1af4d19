"""The fields that requests and answers are made of, as the document describes them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from headrace.domain.names import RULE, SERVED_RULE
from headrace.domain.scopes import RULE as SCOPE_RULE

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_SERVED = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}$"
_ALIAS = r"^[A-Za-z][A-Za-z0-9._-]{0,127}$"
_NUMBER = r"^[1-9][0-9]{0,8}$"
_SCOPE = r"^(infer|batch|models:read|models:write|admin|infer:[A-Za-z0-9._*?-]{1,128})$"
_HEADER = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"
_OPTIONAL_HEADER = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{0,128}$"
_OPTIONAL_NAME = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127})?$"
_NO_NUL = r"^[^\x00]*$"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Body(BaseModel):
    """What is sent: nothing that is not named here, and every value in its own JSON type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class View(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid")


def _text(value: Any) -> Any:
    """RFC 3339 and nothing else: pydantic would take numbers too, for seconds."""
    if not (isinstance(value, str) and _MOMENT.fullmatch(value)):
        raise ValueError("expected a time with its offset: 2026-01-31T12:00:00Z")
    return value


def _flag(value: Any) -> Any:
    if value in {"true", "false", True, False}:
        return value in {"true", True}
    raise ValueError("expected true or false")


def _whole(value: Any) -> Any:
    """To JSON Schema 8.0 is an integer too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("expected a number in digits")
    return value


#: What a pattern asks for, in words: people read these, the document has the patterns.
SENTENCES: Final = {
    _NAME: f"expected {RULE}",
    _SERVED: f"expected {SERVED_RULE}",
    _ALIAS: f"expected {RULE.replace('a letter or digit', 'a letter')}",
    _NUMBER: "expected a whole number from 1 to 999999999, as text",
    _SCOPE: f"expected {SCOPE_RULE}",
    _HEADER: "expected a header's name: 1 to 128 letters, digits or !#$%&'*+-.^_`|~",
    _OPTIONAL_HEADER: "expected nothing, or a header's name",
    _OPTIONAL_NAME: f"expected nothing or {RULE}",
    _NO_NUL: "expected text without NUL characters",
}

Name: TypeAlias = Annotated[str, Field(pattern=_NAME)]
#: A model's, where it is served by OpenAI's API.
ServedName: TypeAlias = Annotated[str, Field(pattern=_SERVED)]
#: "" where there is none.
OptionalName: TypeAlias = Annotated[str, Field(pattern=_OPTIONAL_NAME)]
AliasName: TypeAlias = Annotated[str, Field(pattern=_ALIAS)]
Number: TypeAlias = Annotated[str, Field(pattern=_NUMBER)]
Line: TypeAlias = Annotated[str, Field(max_length=256, pattern=_NO_NUL)]
Text: TypeAlias = Annotated[str, Field(max_length=4096, pattern=_NO_NUL)]
Word: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=_NO_NUL)]
Tags: TypeAlias = Annotated[list[Word], Field(max_length=64)]
Metadata: TypeAlias = dict[str, Any]
Metrics: TypeAlias = Annotated[dict[Word, Annotated[float, Field(allow_inf_nan=False)]], Field()]
Labels: TypeAlias = Annotated[dict[Word, Line], Field(max_length=64)]
Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e9)]
#: Stands behind a number's bounds: before them, the document would not have them.
WHOLE: Final = BeforeValidator(_whole)
Scope: TypeAlias = Annotated[
    str, Field(pattern=_SCOPE, description=f"What a caller may do: {SCOPE_RULE}.")
]
Digest: TypeAlias = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, in lower-case hexadecimal digits.")
]
Framework: TypeAlias = Literal["onnx"]
Format: TypeAlias = Literal["onnx", "zip"]
Status: TypeAlias = Literal["pending", "ready", "deprecated", "archived", "failed"]
Protocol: TypeAlias = Literal["oip-rest", "oip-grpc", "openai", "in-process"]
Balancer: TypeAlias = Literal[
    "p2c", "least-request", "round-robin", "weighted", "random", "consistent-hash"
]
_HEADERS: Final = (
    "Kept in lower case. None that is about one connection, and neither authorization, cookie nor "
    "x-api-key."
)
HeaderName: TypeAlias = Annotated[str, Field(pattern=_HEADER, description=_HEADERS)]
OptionalHeaderName: TypeAlias = Annotated[
    str, Field(pattern=_OPTIONAL_HEADER, description=f"{_HEADERS} Empty: none.")
]
#: Text in JSON, a moment here.
Moment: TypeAlias = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_text)]

ModelName: TypeAlias = Annotated[str, Path(pattern=_NAME)]
EndpointName: TypeAlias = Annotated[str, Path(pattern=_NAME)]
RouteName: TypeAlias = Annotated[str, Path(pattern=_NAME)]
VersionNumber: TypeAlias = Annotated[str, Path(pattern=_NUMBER)]
AliasInPath: TypeAlias = Annotated[str, Path(pattern=_ALIAS)]
KeyId: TypeAlias = Annotated[str, Path(pattern=r"^key_[0-9a-z]{26}$")]
EntityId: TypeAlias = Annotated[str, Path(pattern=r"^(mdl|ver)_[0-9a-z]{26}$")]


#: Of a query: pydantic alone would also take "yes", "on", "1", " 5" and "5.0".
Flag: TypeAlias = Annotated[bool, BeforeValidator(_flag)]
Limit: TypeAlias = Annotated[
    int,
    Field(ge=1, le=500, description="At most so many items are answered."),
    BeforeValidator(_digits),
]


class Problem(View):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"title": "Problem"})

    type: str = Field(description="urn:headrace:error: and the code.")
    title: str
    status: int
    detail: str = Field(description="One sentence that says what is wrong, and the way out.")
    code: str = Field(description="Stable: programs decide by this.")
    request_id: str
    errors: list[FieldProblem] = Field(default=[], description="What is wrong with single fields.")
    checks: list[CheckView] = Field(default=[], description="Of a promotion that was refused.")
    needed_by: list[str] = Field(
        default=[], description="What is in the way of a deletion: paths below /api/v1."
    )


class FieldProblem(View):
    """What is wrong with one field."""

    detail: str
    pointer: str = Field(default="", description="Of a field in the body: a JSON pointer (#/…).")
    parameter: str = Field(default="", description="Of the path, the query or a header: its name.")


class CheckView(View):
    """One check of a promotion."""

    name: Literal["status", "signature", "warm_up", "smoke_inputs"]
    outcome: Literal["passed", "failed", "forced", "skipped"]
    detail: str
