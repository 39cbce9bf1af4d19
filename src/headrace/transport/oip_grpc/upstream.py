"""The Open Inference Protocol's gRPC client: attempts at one address of an endpoint, by grpc.aio.

Source of the options: grpc/grpc `include/grpc/impl/channel_arg_names.h`; of what Triton answers:
triton-inference-server/core `src/model_repository_manager/`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote

# as in server.py: child processes are started while it runs, and the log is not the library's
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    InvalidSettings,
    PayloadTooLarge,
    UnknownModel,
    Unsupported,
    why,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses
from headrace.ports.remote_models import RemoteModels
from headrace.ports.upstream import Site
from headrace.transport.hops import HEADER, hop
from headrace.transport.model_reports import MAX_REPORT_BYTES
from headrace.transport.oip_grpc import answers, schema
from headrace.transport.oip_grpc.answers import one_line
from headrace.transport.oip_grpc.remote_models import METHODS, GrpcModels
from headrace.transport.oip_grpc.reply import GrpcReply, no_answer
from headrace.transport.oip_grpc.request import WANTS_EMPTY_FINAL, encode
from headrace.transport.oip_grpc.settings import GrpcClientSettings
from headrace.transport.triton_words import meaning

_INFER: Final = f"/{schema.INFERENCE}/ModelInfer"
_STREAM: Final = f"/{schema.INFERENCE}/ModelStreamInfer"
_SERVER_READY: Final = f"/{schema.INFERENCE}/ServerReady"
_MODEL_READY: Final = f"/{schema.INFERENCE}/ModelReady"
_UNARY: Final = (
    _INFER,
    _SERVER_READY,
    _MODEL_READY,
    *(f"/{schema.INFERENCE}/{method}" for method in METHODS),
)
#: Asks Triton to end a stream with the status of its error; others know nothing of it.
_STRICT: Final = ("triton_grpc_error", "true")
_MAX_PUSHBACK_DIGITS: Final = 9
_MAX_METADATA_BYTES: Final = 64 * 1024
_READY: Final = grpc.ChannelConnectivity.READY
_FAILING: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_Code: Final = grpc.StatusCode
_COMPRESSION: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": schema.INFERENCE, "method": method} for method in METHODS],
                "maxResponseMessageBytes": MAX_REPORT_BYTES,
            }
        ]
    }
)

#: Statuses under which Triton says what others do not tell.
_TELLING: Final = frozenset({_Code.INVALID_ARGUMENT, _Code.UNAVAILABLE, _Code.INTERNAL})
#: What the library says where no connection could be made.
_UNREACHED: Final = "failed to connect to all addresses"

Metadata: TypeAlias = Sequence[tuple[str, str]]


class GrpcUpstream:
    """See ports.upstream.Upstream. Channels connect when they are first used.

    A channel reports no more than whether it is connected: `pending` counts requests on channels
    that are not. A path in the endpoint's URL has no meaning here.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        site: Site,
        *,
        settings: GrpcClientSettings,
        clock: Callable[[], float],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """`credentials` are of a secure site; None: the usual authorities, no certificate."""
        self.endpoint = endpoint
        self._site = site
        self._settings = settings
        self._clock = clock
        self._credentials = credentials
        self._channels: list[_Channel] = []
        self._closed = False
        self._models = GrpcModels(self._ask)

    @property
    def connections(self) -> int:
        """Open connections, busy and idle."""
        return sum(channel.connected for channel in self._channels)

    @property
    def pending(self) -> int:
        """Requests that wait for a connection."""
        return sum(channel.busy for channel in self._channels if not channel.connected)

    @property
    def models(self) -> RemoteModels:
        """See Upstream.models."""
        return self._models

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """See Upstream. `run_s` of the answer is the whole time that the endpoint took."""
        begun = self._clock()
        message = encode(request, self._left_us(call, begun))
        body = await self._ask(_INFER, message, call.deadline, _about(call))
        return self._response(request, GrpcReply(body), begun)

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """See Upstream.stream: one call of ModelStreamInfer, whose end is the stream's.

        Each response is read when it is asked for. What comes behind a final one is not waited
        for. Servers that do not tell which response is the last give none that is `final`, and
        have to give one. A server that has no streams is asked as by `infer`.
        """
        begun = self._clock()
        # so that no response at all can be told from an answer that was lost
        message = encode(request, self._left_us(call, begun)) + WANTS_EMPTY_FINAL
        left_s = self._left_s(call.deadline)
        channel = self._least_busy()
        channel.busy += 1
        rpc = channel.open(message, left_s, [*_about(call), _STRICT])
        count = 0
        try:
            while (answer := await rpc.read()) is not grpc.aio.EOF:
                count += 1
                reply = answers.read(answer)
                response = self._response(request, reply, begun)
                response.final = reply.final
                yield response
                if response.final:
                    return
        except grpc.aio.AioRpcError as error:
            if count or not _has_no_streams(error):
                raise _translated(error) from error
        else:
            if not count:
                raise no_answer("a stream that ended without a response")
            return
        finally:
            rpc.cancel()  # whatever ended this, the endpoint is told; of what is over it is nothing
            channel.busy -= 1
            if self._closed:
                await self._drop_idle(channel)
        yield await self.infer(request, call)

    async def unready(self, model: str, version: str, deadline: float) -> str:
        path, kind = _SERVER_READY, schema.ServerReadyResponse
        message = b""  # as a ServerReadyRequest is
        if model:
            path, kind = _MODEL_READY, schema.ModelReadyResponse
            message = schema.ModelReadyRequest(name=model, version=version).SerializeToString()
        try:
            ready: bool = schema.parse(kind, await self._ask(path, message, deadline)).ready
        except HeadraceError as error:
            return why(error)
        return "" if ready else "it says that it is not"

    async def close(self) -> None:
        self._closed = True
        for channel in [*self._channels]:
            await self._drop_idle(channel)

    async def _ask(
        self, path: str, message: bytes, deadline: float, metadata: Metadata = ()
    ) -> bytes:
        left_s = self._left_s(deadline)
        channel = self._least_busy()
        channel.busy += 1
        try:
            return await channel.ask(path, message, left_s, metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            channel.busy -= 1
            if self._closed:
                await self._drop_idle(channel)

    def _left_s(self, deadline: float) -> float:
        """The time left. Raises EndpointTimeout, and EndpointFailed where this was closed."""
        left_s = deadline - self._clock()
        if left_s <= 0:
            raise _late()
        if self._closed:
            raise _failed("the endpoint is no longer asked", "its upstream was closed")
        return left_s

    def _left_us(self, call: Call, now: float) -> int:
        """What an endpoint is told of the time left; 0 where it is told nothing."""
        if call.deadline == math.inf or not self._settings.send_timeout:
            return 0
        return max(int((call.deadline - now) * 1e6), 1)

    def _response(self, request: InferRequest, reply: GrpcReply, begun: float) -> InferResponse:
        return InferResponse(
            request.model,
            reply.version or request.version,
            [],
            run_s=self._clock() - begun,
            reply=reply,
        )

    def _least_busy(self) -> _Channel:
        channel = min(self._channels, key=_busy, default=None)
        if channel is not None and channel.failing:
            # it fails what it is asked until its next try to connect, though others may be back
            sound = [each for each in self._channels if not each.failing]
            channel = min(sound, key=_busy, default=channel)
        if channel is None or (channel.busy and len(self._channels) < self._settings.channels):
            channel = _Channel(_connect(self._site, self._settings, self._credentials))
            self._channels.append(channel)
        return channel

    async def _drop_idle(self, channel: _Channel) -> None:
        if not channel.busy and channel in self._channels:
            self._channels.remove(channel)
            await channel.close()  # without a grace it waits for nothing


class _Channel:
    """One connection of the library's, and how many requests are under way on it."""

    __slots__ = ("_channel", "_methods", "_stream", "busy")

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        # without (de)serialisers messages stay bytes
        self._methods = {path: channel.unary_unary(path) for path in _UNARY}
        # one request, then an end from this side: on the wire, that is what a stream of one is
        self._stream = channel.unary_stream(_STREAM)
        self.busy = 0

    @property
    def connected(self) -> bool:
        state = self._channel.get_state()
        return state is _READY

    @property
    def failing(self) -> bool:
        """Whether it could not connect the last time, and waits before it tries again."""
        state = self._channel.get_state()
        return state is _FAILING

    async def ask(self, path: str, message: bytes, timeout_s: float, metadata: Metadata) -> bytes:
        """Raises AioRpcError. Cancelled where it waits, it cancels the RPC."""
        timeout = None if timeout_s == math.inf else timeout_s
        # awaits the library's own task, which is a future to whoever has no task
        body: bytes = await self._methods[path](message, timeout=timeout, metadata=metadata)
        return body

    def open(self, message: bytes, timeout_s: float, metadata: Metadata) -> Any:
        """Begin a stream, whose `read` raises AioRpcError and may be awaited without a task."""
        timeout = None if timeout_s == math.inf else timeout_s
        return self._stream(message, timeout=timeout, metadata=metadata)

    async def close(self) -> None:
        await self._channel.close()


def channel_credentials(
    ca: bytes | None, certificate: bytes | None, key: bytes | None
) -> grpc.ChannelCredentials:
    """Credentials out of PEM texts; without `ca` the authorities that the library ships count.

    `key` may be None where `certificate` holds it too.

    Raises:
        InvalidSettings: there is a key and no certificate.
    """
    if certificate is None and key is not None:
        msg = "the key of a client certificate was given without the certificate: set both"
        raise InvalidSettings(msg)
    return grpc.ssl_channel_credentials(ca, key or certificate, certificate)


def _connect(
    site: Site, settings: GrpcClientSettings, credentials: grpc.ChannelCredentials | None
) -> Any:
    """A channel to the site's address. Nothing is looked up: the address was, and was checked."""
    address = f"[{site.address}]" if site.address.version == 6 else str(site.address)  # noqa: PLR2004
    target = f"ipv{site.address.version}:{quote(address, safe='[]:')}:{site.port}"
    host = site.host.strip("[]")
    authority = f"[{host}]:{site.port}" if ":" in host else f"{host}:{site.port}"
    options: list[tuple[str, Any]] = [
        ("grpc.default_authority", authority),  # also whom a certificate must name
        ("grpc.primary_user_agent", "headrace"),
        ("grpc.use_local_subchannel_pool", 1),  # else equal channels would share a connection
        ("grpc.enable_http_proxy", 0),  # which could reach what is not allowed
        ("grpc.enable_retries", 0),  # the router's alone
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_send_message_length", -1),  # what came in was within its limit
        ("grpc.max_receive_message_length", settings.max_answer_bytes),
        # an error's text is metadata; of what is over the lower limit, chance refuses a part
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        # how long one try may take, in spite of the name
        ("grpc.min_reconnect_backoff_ms", _ms(settings.connect_timeout_s)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", _ms(settings.reconnect_s)),
        # Servers end connections that are tested too often. Two tests without data between them,
        # the library's default, are less than any counts as that; an idle one is not tested.
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_s)),
    ]
    compression = _COMPRESSION[settings.compression]
    if not site.secure:
        return grpc.aio.insecure_channel(target, options, compression)
    chosen = credentials or grpc.ssl_channel_credentials()
    return grpc.aio.secure_channel(target, chosen, options, compression)


def _about(call: Call) -> list[tuple[str, str]]:
    """What goes beside a request."""
    metadata = [("x-request-id", call.request_id), (HEADER, str(hop(call)))]
    if call.trace is not None:
        metadata.append(("traceparent", call.trace.traceparent))
        if call.trace.tracestate:
            metadata.append(("tracestate", call.trace.tracestate))
    return metadata


def _has_no_streams(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server lacks the method, in the words of gRPC's C++ and Python, Go and Java."""
    text = (error.details() or "").lower()
    return error.code() is _Code.UNIMPLEMENTED and (
        not text or text.startswith(("method not ", "unknown method", "unknown service"))
    )


def _translated(error: grpc.aio.AioRpcError) -> HeadraceError:
    """What a status of an endpoint means here; the library has statuses of its own making."""
    code, text = error.code(), error.details() or ""
    retry_after_s = _retry_after_s(error)
    if code in _TELLING and (meant := meaning(one_line(text))) is not None:
        meant.retry_after_s = retry_after_s
        return meant
    match code:
        case _Code.DEADLINE_EXCEEDED:
            return _late()
        # one that exists already is a model's own refusal, as by REST
        case _Code.INVALID_ARGUMENT | _Code.OUT_OF_RANGE | _Code.ALREADY_EXISTS:
            return InvalidRequest(one_line(text) or "the endpoint refused the request as invalid")
        case _Code.NOT_FOUND:
            return UnknownModel(one_line(text) or "the endpoint does not know the model")
        case _Code.UNIMPLEMENTED:
            return Unsupported(one_line(text) or "the endpoint does not offer this")
        case _Code.RESOURCE_EXHAUSTED if _is_answer_too_large(text):
            return _failed("the endpoint's answer is too large", text)
        case _Code.RESOURCE_EXHAUSTED if _is_too_large(text):
            return PayloadTooLarge("the request is larger than the endpoint takes")
        case _Code.RESOURCE_EXHAUSTED:
            return EndpointBusy("the endpoint has no room", retry_after_s=retry_after_s)
        case _:
            failed = _failed("the endpoint failed", f"{code.name}: {text}", retry_after_s)
            failed.sent = not text.startswith(_UNREACHED)
            return failed


def _failed(message: str, reason: str, retry_after_s: float | None = None) -> EndpointFailed:
    error = EndpointFailed(message, retry_after_s=retry_after_s)
    error.reason = reason
    return error


def _late() -> EndpointTimeout:
    return EndpointTimeout("the endpoint did not answer in time")


def _retry_after_s(error: grpc.aio.AioRpcError) -> float | None:
    """What gRFC A6 calls pushback; a negative one asks for no retry, and says nothing of when."""
    metadata = error.trailing_metadata()
    value = metadata.get("grpc-retry-pushback-ms") if metadata is not None else None
    if not isinstance(value, str) or len(value) > _MAX_PUSHBACK_DIGITS:
        return None
    return int(value) / 1000 if value.isascii() and value.isdigit() else None


def _is_answer_too_large(text: str) -> bool:
    """Whether the library itself says so, here or in a proxy's client."""
    return "CLIENT: Received message larger" in text or "metadata size exceeds" in text


def _is_too_large(text: str) -> bool:
    """Whether a refusal is about the message's size: in the words of gRPC's C++, Go and Java."""
    lower = text.lower()
    return "message larger than max" in lower or "message exceeds maximum size" in lower


def _busy(channel: _Channel) -> int:
    return channel.busy


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
