"""The connections to one address, and the requests that wait for one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from ssl import SSLContext
from typing import Final

from headrace.domain.errors import EndpointBusy, EndpointTimeout
from headrace.ports.upstream import Site
from headrace.transport.http.client.connection import ClientConnection
from headrace.transport.http.client.exchange import NO_ANSWER, Answer, Exchange, broken
from headrace.transport.http.client.limits import ClientLimits

_logger = logging.getLogger(__name__)

_TIMER_STEP_S: Final = 0.001  # what a loop's timers may be early by
_TIMER_REST_S: Final = 0.005  # between two looks, so that many deadlines cost no look each
_TIMED_OUT: Final = "the endpoint did not answer in time"


class ClientPool:
    """Makes exchanges with one site, over as few connections as will do.

    The connection that was used last is used first, so that those beyond the need grow old and
    are closed. `tls` is what the connections are secured with, None where they are not.
    """

    def __init__(self, site: Site, *, limits: ClientLimits, tls: SSLContext | None = None) -> None:
        self._site = site
        self._limits = limits
        self._tls = tls
        self._idle: list[ClientConnection] = []  # the one used last at the end
        self._waiting: deque[Exchange] = deque()  # in the order they came
        #: What makes connections, each for whoever waits first or for one exchange alone.
        self._connecting: dict[asyncio.Task[None], tuple[ClientConnection, Exchange | None]] = {}
        self._held = 0  # connections open or being made
        self._coming = 0  # of those being made, the ones for whoever waits first
        self._under_way: set[Exchange] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = math.inf  # when it looks whose deadline has passed
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def limits(self) -> ClientLimits:
        """What it was made with."""
        return self._limits

    @property
    def connections(self) -> int:
        """Open connections, busy and idle."""
        return self._held - len(self._connecting)

    @property
    def pending(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    async def exchange(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        deadline: float,
        *,
        may_repeat: Callable[[], bool] | None = None,
        coded: bool = False,
        max_body_bytes: int | None = None,
    ) -> Answer:
        """Send a request and wait for its whole answer, until `deadline` on the loop's clock.

        `head` has all header lines and the empty line behind them. `may_repeat` is asked where a
        kept connection was lost before an answer; None: it may. `coded` tells whether the answer's
        body may have a Content-Encoding, which is left as it is; `max_body_bytes` is a bound of the
        body below that of all answers. Awaits one plain future.

        Raises:
            EndpointBusy: all connections are busy, and no more requests may wait for one.
            EndpointFailed: the endpoint was not reached, or its answer is none.
            EndpointTimeout: the deadline passed.
        """
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            raise EndpointTimeout(_TIMED_OUT)
        exchange = Exchange(
            head, body, deadline, loop.create_future(), may_repeat, None, coded, max_body_bytes
        )
        if self._idle:
            self._idle.pop().ask(exchange)
        else:
            self._enqueue(exchange)
        self._under_way.add(exchange)
        if deadline < self._watch_at:
            self._watch_until(deadline)
        try:
            outcome = await exchange.outcome
        except (asyncio.CancelledError, GeneratorExit):
            self._drop(exchange)
            raise
        finally:
            self._under_way.discard(exchange)
        if type(outcome) is Answer:
            return outcome
        assert isinstance(outcome, Exception)  # noqa: S101 - for the type checker
        try:
            raise outcome
        finally:  # the error has this frame: what has the error would keep the body with it
            del outcome, exchange

    async def close(self) -> None:
        """Close idle connections now, and the others when their requests end."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in self._idle.copy():
            connection.abandon()
        if not self._waiting:
            surplus = [task for task, (_, only) in self._connecting.items() if only is None]
            for task in surplus:
                task.cancel()
            await asyncio.gather(*surplus, return_exceptions=True)

    # --- requests ----------------------------------------------------------------------------

    def _enqueue(self, exchange: Exchange) -> None:
        if self._closed:
            raise broken("the endpoint is asked no more", "its connections were closed")
        limits = self._limits
        if self._held >= limits.max_connections:
            stuck = len(self._waiting) - self._coming  # no connection is on its way for them
            if stuck >= limits.max_pending:
                msg = "the endpoint has no connection free, and no room to wait for one"
                raise EndpointBusy(msg)
        self._waiting.append(exchange)
        self._fill()

    def _watch_until(self, deadline: float) -> None:
        """Look at `deadline` whose time is over.

        One timer for all, at the earliest deadline: to set and to cancel one for each request
        costs more than all else that is done for it here, and hardly any ever goes off.
        """
        if self._watch is not None:
            self._watch.cancel()
        self._watch_at = deadline
        self._watch = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._watch, self._watch_at = None, math.inf
        for exchange in list(self._under_way):
            if exchange.deadline <= now + _TIMER_STEP_S:
                self._drop(exchange)
                exchange.end(EndpointTimeout(_TIMED_OUT))
        running = [each.deadline for each in self._under_way if not each.outcome.done()]
        earliest = min(running, default=math.inf)
        if earliest != math.inf:
            self._watch_until(max(earliest, now + _TIMER_REST_S))

    def _drop(self, exchange: Exchange) -> None:
        """Take back a request that nobody waits for any more."""
        if exchange.connection is not None:
            exchange.connection.take_back(exchange)
        elif exchange in self._waiting:  # or a connection is being made for it alone
            self._waiting.remove(exchange)

    # --- connections -------------------------------------------------------------------------

    def _released(self, connection: ClientConnection) -> None:
        """Give a connection that can take a request to the first that waits."""
        if self._waiting:
            connection.ask(self._waiting.popleft())
        elif self._closed:
            connection.abandon()
        else:
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweep is None:
                due = connection.idle_since + self._limits.idle_timeout_s
                self._sweep = loop.call_at(due, self._close_old)

    def _lost(self, connection: ClientConnection, unanswered: Exchange | None) -> None:
        """Forget a connection; `unanswered` lost it before the first byte of an answer.

        That one goes out once more, if it may. A server ends an idle connection when it likes, and
        when it does so as a request is on its way there, that tells nothing of how it is, and is
        no failure to be counted or answered. The connection made for it has never answered, so
        what happens on that one is the end of it.
        """
        if connection in self._idle:
            self._idle.remove(connection)
        self._held -= 1
        if unanswered is None:
            self._fill()
        elif unanswered.may_repeat is None or unanswered.may_repeat():
            self._open(unanswered)
        else:  # whether the endpoint had it cannot be known
            unanswered.end(broken(NO_ANSWER))
            self._fill()

    def _fill(self) -> None:
        """Make as many connections as there are requests waiting for, and room."""
        while self._coming < len(self._waiting) and self._held < self._limits.max_connections:
            self._open(None)

    def _open(self, exchange: Exchange | None) -> None:
        self._held += 1
        if exchange is None:
            self._coming += 1
        connection = ClientConnection(limits=self._limits, released=self._released, lost=self._lost)
        task = asyncio.get_running_loop().create_task(self._connect(connection, exchange))
        self._connecting[task] = connection, exchange
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        connection, exchange = self._connecting.pop(task)
        if task.cancelled():
            if exchange is None:
                self._coming -= 1
            connection.abandon()

    async def _connect(self, connection: ClientConnection, exchange: Exchange | None) -> None:
        site = self._site
        reason = "it closed the connection at once"
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection,
                    str(site.address),
                    site.port,
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else site.host.strip("[]"),
                )
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
            failed = True
        except Exception as error:  # the task's root: whoever waits must hear of it
            _logger.exception("a connection could not be made")
            reason = f"{type(error).__name__}: {error}"
            failed = True
        else:
            failed = connection.gone
        if exchange is None:
            self._coming -= 1
        if failed:
            if exchange is None and self._waiting:
                exchange = self._waiting.popleft()
            if exchange is not None:
                where = f"{site.address} port {site.port}"
                unreached = broken("the endpoint could not be reached", f"{where}: {reason}")
                unreached.sent = False
                exchange.end(unreached)
            connection.abandon()
            self._fill()
        elif exchange is not None and not exchange.outcome.done():
            connection.ask(exchange)
        else:
            self._released(connection)

    def _close_old(self) -> None:
        """Close what was idle for too long, and come back when the next one will be."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        due = loop.time() - self._limits.idle_timeout_s
        for connection in [each for each in self._idle if each.idle_since <= due]:
            connection.abandon()
        if self._idle:
            oldest = self._idle[0].idle_since
            self._sweep = loop.call_at(oldest + self._limits.idle_timeout_s, self._close_old)
