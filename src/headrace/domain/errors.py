"""The one tree of errors. Each has a stable code, which `transport/status.py` maps to wires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from headrace.domain.standing import Standing


class HeadraceError(Exception):
    """An outcome that a client or an operator is told about, with a sentence that says what to do.

    `retry_after_s` is a hint in seconds, present where waiting may help.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    #: What a wire may show beside the message: which field, which check, what is in the way.
    details: Mapping[str, Any] = {}

    #: How the caller stands with its limits, where the request was counted.
    standings: Sequence[Standing] = ()

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(HeadraceError):
    """The client sent something that can never succeed as it stands."""

    code = "invalid_request"


class Unauthenticated(HeadraceError):
    """No credential, or none that is known. The message never says which part was wrong."""

    code = "unauthenticated"


class KeysUnavailable(HeadraceError):
    """No key of the issuer is known yet, so that no token of it can be verified."""

    code = "keys_unavailable"
    retryable = True


class Forbidden(HeadraceError):
    """The caller is known, and may not do this; the message names the scope that it lacks."""

    code = "forbidden"


class RateLimited(HeadraceError):
    """The caller has asked more often than it may; `retry_after_s` says when to come back."""

    code = "rate_limited"
    retryable = True


class TenantBusy(HeadraceError):
    """The caller's tenant has as many requests under way as it may."""

    code = "tenant_busy"
    retryable = True


class Overloaded(HeadraceError):
    """The platform has as many requests under way as it takes; what is less urgent goes first."""

    code = "overloaded"
    retryable = True


class IdempotencyInFlight(HeadraceError):
    """The request that first came with this idempotency key is not answered yet."""

    code = "idempotency_in_flight"
    retryable = True


class IdempotencyAnswerLost(HeadraceError):
    """The request was carried out when it first came, and its answer was lost."""

    code = "idempotency_answer_lost"


class IdempotencyMismatch(HeadraceError):
    """The idempotency key came before, with another request."""

    code = "idempotency_mismatch"


class MalformedHttp(InvalidRequest):
    """What came is not HTTP, or not in a way that has one meaning."""

    code = "malformed_http"


class HeadTooLarge(InvalidRequest):
    """The request line and the headers are over the configured limit."""

    code = "head_too_large"


class RequestTimeout(HeadraceError):
    """The client took longer to send its request than it may."""

    code = "request_timeout"


class TooManyConnections(HeadraceError):
    """There are as many connections as are served at once."""

    code = "too_many_connections"
    retryable = True


class MethodNotAllowed(HeadraceError):
    """The path is served, and not with this method."""

    code = "method_not_allowed"


class PayloadTooLarge(InvalidRequest):
    """The body, received or decompressed, is over the configured limit."""

    code = "payload_too_large"


class UnsupportedEncoding(InvalidRequest):
    """The body's Content-Encoding is not one the platform decodes."""

    code = "unsupported_encoding"


class UnsupportedMediaType(InvalidRequest):
    """The body's Content-Type is not one that the route takes."""

    code = "unsupported_media_type"


class Unsupported(HeadraceError):
    """A known feature of the protocol that this platform deliberately does not offer."""

    code = "unsupported"


class NotFound(HeadraceError):
    """No such object, or none that the caller's tenant owns."""

    code = "not_found"


class AlreadyExists(HeadraceError):
    """Something with that name is there."""

    code = "already_exists"


class Conflict(HeadraceError):
    """The object's present state, or what depends on it, does not allow this."""

    code = "conflict"


class PreconditionRequired(HeadraceError):
    """A write must say, with If-Match, which state it changes."""

    code = "precondition_required"


class PreconditionFailed(HeadraceError):
    """The object was changed since the caller read it."""

    code = "precondition_failed"


class StoreUnavailable(HeadraceError):
    """A database or an object store does not answer; nothing was changed by this request."""

    code = "store_unavailable"
    retryable = True


class StorageFull(HeadraceError):
    """There is no room left for what was sent."""

    code = "storage_full"


class CacheUnavailable(HeadraceError):
    """The shared cache does not answer. Never an answer to a client: the store is asked instead."""

    code = "cache_unavailable"
    retryable = True


class ChangesForgotten(HeadraceError):
    """The change log does not go back so far. Never an answer to a client."""

    code = "changes_forgotten"


class UnknownModel(HeadraceError):
    """No model, or no version of it, under that name."""

    code = "model_not_found"


class ModelNotReady(HeadraceError):
    """The model exists, but nothing can run it at this moment."""

    code = "model_not_ready"
    retryable = True


class NoReadyEndpoint(ModelNotReady):
    """Endpoints serve the model, and none of them may be asked at this moment."""

    code = "no_ready_endpoint"


class EndpointFailed(HeadraceError):
    """An endpoint could not be reached, broke off, failed, or answered what is no answer.

    `retry_after_s` is what it asked for itself. The message never holds what it said.
    """

    code = "endpoint_failed"
    retryable = True

    #: Why, for operators: its own words, an address; for the log alone.
    reason: str = ""
    #: Whether the endpoint may have had the request: not where no connection could be made.
    sent: bool = True


def why(error: HeadraceError) -> str:
    """What an operator is told of an error at an endpoint, and a client is not."""
    return (error.reason if isinstance(error, EndpointFailed) else "") or error.message


class EndpointBusy(HeadraceError):
    """An endpoint has no room: it said so, or its limit of connections or requests is reached."""

    code = "endpoint_busy"
    retryable = True


class ModelLoadFailed(HeadraceError):
    """A model's files or configuration cannot be served; the message is the reason."""

    code = "model_load_failed"


class ModelFailed(HeadraceError):
    """The model raised, or answered something that does not fit its signature."""

    code = "model_failed"


class InvalidResponse(ModelFailed):
    """An answer lacks outputs, or has not a row for each row that was asked about."""

    code = "invalid_response"


class QueueFull(HeadraceError):
    """The model's queue has no room; refused at once rather than answered late."""

    code = "queue_full"
    retryable = True


class QueueTimeout(HeadraceError):
    """The request waited in the queue for longer than its queue policy allows."""

    code = "queue_timeout"
    retryable = True


class DeadlineExceeded(HeadraceError):
    """The request's deadline passed before an answer existed."""

    code = "deadline_exceeded"


class EndpointTimeout(DeadlineExceeded):
    """An endpoint did not answer within the time of one attempt."""

    code = "endpoint_timeout"


class ShuttingDown(HeadraceError):
    """This process is draining and takes no new work."""

    code = "shutting_down"
    retryable = True


class BatchCancelled(HeadraceError):
    """A row of a batch job was not run, because the job was cancelled first."""

    code = "batch_cancelled"


class BatchExpired(HeadraceError):
    """A row of a batch job was not run within the job's completion window."""

    code = "batch_expired"


class ChunkDead(HeadraceError):
    """Rows of a batch job were given up: working on their part of the file failed repeatedly."""

    code = "chunk_dead"


class BatchInconsistent(HeadraceError):
    """A job's parts do not add up to its rows: a defect of ours, for which nothing is finished."""

    code = "batch_inconsistent"


class InvalidSettings(HeadraceError):
    """The configuration cannot start; the message names the key and what was expected."""

    code = "invalid_settings"
