"""The body of a generate request, which says something once its model's inputs are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from headrace.domain.errors import InvalidRequest
from headrace.domain.inference import DeadlineOf, rows_of
from headrace.domain.models import TensorSpec
from headrace.domain.tensors import NO_PARAMETERS, InferContent, Parameters
from headrace.transport.oip_rest.compression import decompressed
from headrace.transport.oip_rest.generate_request import (
    Members,
    read_members,
    timeout_of,
    to_content,
)
from headrace.transport.oip_rest.learnt_inputs import Asked, LearntInputs

#: A member `timeout` may turn out to be an input: that long the model's inputs are waited for.
_LEAST_US: Final = 50_000


class GeneratePayload:
    """A Payload that nobody can read before `unpack`, which is the request's."""

    def __init__(
        self,
        body: bytes,
        *,
        coding: bytes,
        max_body_bytes: int,
        asked: Asked,
        learnt: LearntInputs,
    ) -> None:
        self.size_bytes = len(body)
        self._body = body
        self._coding = coding
        self._max_body_bytes = max_body_bytes
        self._asked = asked
        self._learnt = learnt
        self._content = InferContent([])
        self.deadline = math.inf  # known once it is unpacked

    async def unpack(self, deadline_of: DeadlineOf) -> None:
        """Decompress and decode; the body is let go.

        Raises:
            InvalidRequest: it does not fit the model.
            DeadlineExceeded: what the model takes could not be learnt in time.
            UnknownModel, ModelNotReady and the like: see ModelControl.metadata.
        """
        body, self._body = self._body, b""
        if self._coding:
            body = await decompressed(body, self._coding, self._max_body_bytes)
        members = read_members(body)
        known = self._learnt.known(self._asked)
        if known is None:
            inputs = await self._learn(members, deadline_of)
            self._content = to_content(members, inputs)
        else:
            try:
                self._content = to_content(members, known)
            except InvalidRequest:
                # another version may have taken its place meanwhile
                self._content = to_content(members, await self._learn(members, deadline_of))
        self.deadline = deadline_of(self._content.parameters)

    async def _learn(self, members: Members, deadline_of: DeadlineOf) -> Sequence[TensorSpec]:
        timeout_us = timeout_of(members)
        asked_us = {"timeout": max(timeout_us, _LEAST_US)} if timeout_us else NO_PARAMETERS
        return await self._learnt.learn(self._asked, deadline_of(asked_us))

    def decode(self) -> InferContent:
        return self._content

    def parameters(self) -> Parameters:
        return self._content.parameters

    def rows(self) -> int | None:
        inputs = self._content.inputs
        return rows_of(inputs[0].array.shape) if inputs else 0
