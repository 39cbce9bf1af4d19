"""Control calls under way: who asks the same of the same address meanwhile gets the same answer.

An endpoint may lead back to this platform, which then asks itself: the second question waits for
the first, and both end in time, where each would otherwise ask the next, on and on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeAlias, TypeVar

from headrace.domain.errors import EndpointFailed, EndpointTimeout, HeadraceError
from headrace.router.member import Member

AnswerT = TypeVar("AnswerT")
_Outcome: TypeAlias = tuple[Any, HeadraceError | None]

_logger = logging.getLogger(__name__)


class Flights:
    """`spawn` begins a task that outlives who waits for it; `clock` answers monotonic seconds."""

    def __init__(
        self,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
        clock: Callable[[], float],
    ) -> None:
        self._spawn = spawn
        self._clock = clock
        self._under_way: dict[Hashable, asyncio.Future[_Outcome]] = {}

    async def ask(
        self,
        member: Member,
        question: Hashable,
        call: Callable[[], Coroutine[Any, Any, AnswerT]],
        deadline: float,
    ) -> AnswerT:
        """What `call` answers, or the call for the same question that was there before it.

        Raises:
            HeadraceError: what it raised; EndpointTimeout where there is no answer by `deadline`.
        """
        key = (member, question)
        flight = self._under_way.get(key)
        if flight is None:
            flight = self._under_way[key] = asyncio.get_running_loop().create_future()
            self._spawn(self._fly(key, flight, member, call()))
        await asyncio.wait([flight], timeout=max(0.0, deadline - self._clock()))
        if not flight.done():
            name = member.endpoint.name
            raise EndpointTimeout(f"endpoint '{name}' did not answer within the time it is given")
        answer: AnswerT
        answer, error = flight.result()
        if error is not None:
            raise error
        return answer

    async def _fly(
        self,
        key: Hashable,
        flight: asyncio.Future[_Outcome],
        member: Member,
        call: Coroutine[Any, Any, Any],
    ) -> None:
        outcome: _Outcome = (None, EndpointFailed(f"endpoint '{member.endpoint.name}' is gone"))
        try:
            outcome = (await call, None)
        except HeadraceError as error:
            outcome = (None, error)
        except Exception:  # the root of a task; it must not take the fleet along
            _logger.exception("an answer of endpoint %s cannot be understood", member.name)
            msg = f"endpoint '{member.endpoint.name}' answered what cannot be understood"
            outcome = (None, EndpointFailed(msg))
        finally:
            del self._under_way[key]
            flight.set_result(outcome)
