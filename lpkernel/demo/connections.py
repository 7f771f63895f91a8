"""What comes before a request: connections, of which an address has so many, for so long without asking anything."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10  # seconds for the head of a request, from the connection or the last answer on
OPEN = 128  # connections that an address may have


class Connection(H11Protocol):
    """uvicorn's, closed when it waits too long for a request, at once when its address has too many."""

    _waiting: asyncio.TimerHandle | None = None

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
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
