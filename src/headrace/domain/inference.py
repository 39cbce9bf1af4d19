"""A request for an inference and its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.domain.standing import Standing
from headrace.domain.tensors import NO_PARAMETERS, InferContent, Parameters, Tensor

#: When a request's time is over, on the monotonic clock, where its parameters are these.
DeadlineOf: TypeAlias = Callable[[Parameters], float]


class Payload(Protocol):
    """A request's body as its wire received it."""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        ...

    def decode(self) -> InferContent:
        """Decode the whole body.

        Raises:
            InvalidRequest: the body is not a well-formed inference request.
        """
        ...

    def parameters(self) -> Parameters:
        """The request's own parameters, without decoding tensors where that can be avoided."""
        ...

    def rows(self) -> int | None:
        """The length of the first input's first axis, 1 where it has no other axis.

        None where the body does not tell. Raises InvalidRequest where it is malformed.
        """
        ...


class InferRequest(msgspec.Struct):
    """One inference asked of one model. Lazy: tensors are decoded when first asked for.

    `version` is "" where the client named none. A request has a payload, or is made `decoded`.
    """

    model: str
    version: str = ""
    payload: Payload | None = None
    decoded: InferContent | None = None
    #: Undoes the body's compression, before which nothing else of it can be asked for. It is told
    #: how parameters make a deadline, since it may have to ask what the body's members are.
    #: Raises InvalidRequest, DeadlineExceeded.
    unpack: Callable[[DeadlineOf], Awaitable[None]] | None = None

    @property
    def content(self) -> InferContent:
        """The decoded request. Raises InvalidRequest if the body is malformed."""
        content = self.decoded
        if content is None:
            assert self.payload is not None, "a request has a payload or is decoded"  # noqa: S101
            content = self.decoded = self.payload.decode()
        return content

    @property
    def parameters(self) -> Parameters:
        """The request's parameters; tensors stay undecoded. Raises InvalidRequest."""
        if self.decoded is None and self.payload is not None:
            return self.payload.parameters()
        return self.content.parameters

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, about."""
        if self.payload is not None:
            return self.payload.size_bytes
        return sum(tensor.array.nbytes for tensor in self.content.inputs)

    @property
    def rows(self) -> int | None:
        """See Payload.rows."""
        if self.decoded is None and self.payload is not None:
            return self.payload.rows()
        inputs = self.content.inputs
        return rows_of(list(inputs[0].array.shape) if inputs else [])

    def may_repeat(self) -> bool:
        """Whether asking twice is as good as once: of a sequence each request changes the next.

        False also where the parameters cannot be read.
        """
        try:
            return not self.parameters.get("sequence_id")
        except HeadraceError:
            return False


def rows_of(shape: Sequence[int]) -> int:
    """How many rows an input of a shape is: one that has a single axis is one row."""
    return shape[0] if len(shape) > 1 else 1


class Answered(msgspec.Struct):
    """What an answer says once decoded."""

    outputs: list[Tensor]
    id: str = ""
    parameters: Parameters = NO_PARAMETERS


class Reply(Protocol):
    """An answer's body as an endpoint sent it. A wire of the same form passes it on as it is."""

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        ...

    def decode(self) -> Answered:
        """Decode the whole body.

        Raises:
            EndpointFailed: the body is not a well-formed answer.
        """
        ...


class InferResponse(msgspec.Struct):
    """The outputs of one request, by the version that ran it.

    Lazy as the request is: what an endpoint sent has a `reply`, and `outputs` once `unpack` ran.
    """

    model: str
    version: str
    outputs: list[Tensor]
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    run_s: float = 0.0  # how long the model ran for it, with whatever else was in its batch
    standings: Sequence[Standing] = ()  # how the caller stands with its limits
    reply: Reply | None = None
    target: str = ""  # the name of the route's target that answered; "" without a route
    final: bool = True  # whether a stream's reader knows by it that no other follows

    def unpack(self) -> None:
        """Decode the reply, if there is one that was not. Raises EndpointFailed."""
        if self.reply is not None:
            answered, self.reply = self.reply.decode(), None
            self.outputs, self.id = answered.outputs, answered.id
            self.parameters = answered.parameters
