"""What comes before a request and after an answer: connections, of which an address has so many, for so long without
asking anything, or reading what it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10  # seconds for the head of a request, from the connection or the last answer on
OPEN = 128  # connections that an address may have
SLOW, LEAST = 30, 2**14  # seconds in which so many bytes of a waiting answer must be read, or all if fewer wait


class Connection(H11Protocol):
    """uvicorn's, closed when it waits too long for a request or its client reads no answer, at once when its address
    has too many."""

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if sum(isinstance(one, Connection) and one._address() == self._address() for one in self.connections) > OPEN:
            transport.abort()
        else:
            self._wait()

    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    def on_response_complete(self) -> None:
        self._wait()  # first: the next request may have come already, and be answered within the call
        self._watch()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _watch(self) -> None:
        """From now on look whether what is written is read: a closed connection, too, stays until it is."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        left = self.transport.get_write_buffer_size()
        # While more is being written, what waits says nothing of what is read.
        if left and (self.flow.write_paused or self.cycle.response_complete):
            self._unread = self.loop.call_later(SLOW, self._drop_unread, left)

    def _drop_unread(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > max(0, before - LEAST):
            self.transport.abort()
        else:
            self._watch()
