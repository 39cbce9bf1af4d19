"""The body of a generate request, which says something once its model's inputs are known."""

from __future__ import annotations

from headrace.domain.errors import InvalidRequest
from headrace.domain.inference import rows_of
from headrace.domain.tensors import InferContent, Parameters
from headrace.transport.oip_rest.compression import decompressed
from headrace.transport.oip_rest.generate_request import read_members, to_content
from headrace.transport.oip_rest.learnt_inputs import Asked, LearntInputs


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

    async def unpack(self) -> None:
        """Decompress and decode; the body is let go.

        Raises:
            InvalidRequest: it does not fit the model.
            UnknownModel, ModelNotReady and the like: see ModelControl.metadata.
        """
        body, self._body = self._body, b""
        if self._coding:
            body = await decompressed(body, self._coding, self._max_body_bytes)
        members = read_members(body)
        known = self._learnt.known(self._asked)
        inputs = await self._learnt.learn(self._asked) if known is None else known
        try:
            self._content = to_content(members, inputs)
        except InvalidRequest:
            if known is None:
                raise
            # another version may have taken its place meanwhile
            self._content = to_content(members, await self._learnt.learn(self._asked))

    def decode(self) -> InferContent:
        return self._content

    def parameters(self) -> Parameters:
        return self._content.parameters

    def rows(self) -> int | None:
        inputs = self._content.inputs
        return rows_of(inputs[0].array.shape) if inputs else 0
