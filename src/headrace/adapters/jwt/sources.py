"""Where an issuer's keys are read from."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from headrace.adapters.jwt.keys import MAX_SET_BYTES

_OK: Final = 200
_MAX_REASON: Final = 200  # a reason may quote a line of the answer
_HEADERS: Final = {"Accept": "application/jwk-set+json, application/json", "Connection": "close"}


class Unfetched(Exception):
    """The keys could not be read; the text says why, in half a sentence."""


class Source(Protocol):
    """A place that keys are read from. `name` is for logs."""

    name: str

    async def fetch(self) -> bytes:
        """Read a key set, of one byte more than is allowed at most. Raises Unfetched."""
        ...


class FileSource:
    """A file."""

    def __init__(self, path: str) -> None:
        self.name = path

    def read(self) -> bytes:
        """As `fetch`, at once."""
        try:
            with Path(self.name).open("rb") as file:
                return file.read(MAX_SET_BYTES + 1)
        except (OSError, ValueError) as error:
            raise Unfetched(getattr(error, "strerror", None) or str(error)) from error

    async def fetch(self) -> bytes:
        return await asyncio.to_thread(self.read)


class UrlSource:
    """A URL, in a thread: names are looked up there by the operating system, which blocks.

    Redirects are not followed, as what is trusted is this address; nor is a proxy of the
    environment used.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}"  # a query may hold a password
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._connect: Callable[[], HTTPConnection] = lambda: (
            HTTPSConnection if parts.scheme == "https" else HTTPConnection
        )(parts.hostname or "", parts.port, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._thread: asyncio.Future[bytes] | None = None

    async def fetch(self) -> bytes:
        if self._thread is not None and not self._thread.done():
            # nothing ends a look-up in a name server that hangs: at least there is only one
            raise Unfetched("the fetch before is still under way")
        attempt = _Attempt(self._connect, self._target)
        self._thread = asyncio.get_running_loop().run_in_executor(None, attempt.get)
        self._thread.add_done_callback(_heed)
        try:
            # a timeout of the socket is for each read, and a server that drips keeps within it
            await asyncio.wait({self._thread}, timeout=self._timeout_s)
            if not self._thread.done():
                raise Unfetched(f"no whole answer within {self._timeout_s:g} s")
            return self._thread.result()
        except (OSError, HTTPException) as error:
            raise Unfetched((str(error) or type(error).__name__)[:_MAX_REASON]) from error
        finally:
            attempt.abort()


class _Attempt:
    """One GET, which another thread may put an end to."""

    def __init__(self, connect: Callable[[], HTTPConnection], target: str) -> None:
        self._connection = connect()
        self._target = target
        self._socket: socket.socket | None = None
        self._aborted = False

    def get(self) -> bytes:
        try:
            self._connection.connect()
            # kept here, as the connection forgets it once the head of the answer is read
            self._socket = self._connection.sock
            if self._aborted:
                raise TimeoutError("connected too late")
            self._connection.request("GET", self._target, headers=_HEADERS)
            with self._connection.getresponse() as response:
                if response.status != _OK:
                    raise Unfetched(f"it answered with status {response.status}")
                return response.read(MAX_SET_BYTES + 1)
        finally:
            self._connection.close()

    def abort(self) -> None:
        """End it where it waits, if it does."""
        self._aborted = True
        if self._socket is not None:
            with suppress(OSError):  # closed meanwhile
                self._socket.shutdown(socket.SHUT_RDWR)


def _heed(thread: asyncio.Future[bytes]) -> None:
    """Take note of an error that nobody waits for any more, so that asyncio does not complain."""
    if not thread.cancelled():
        thread.exception()
