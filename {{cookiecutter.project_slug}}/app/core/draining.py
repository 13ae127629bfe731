"""How a worker leaves: it answers what clients still send, and their idle connections end by themselves."""

import asyncio
import math
import socket

import uvicorn

TURN_SECONDS = 0.05


class DrainingServer(uvicorn.Server):
    """A server whose stop closes no connection on which a client may be sending."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connection, end each open one with its next answer, and stop once all have ended.

        An idle connection ends KEEPALIVE_SECONDS after its last answer, as always: that bounds the wait.
        """
        for server in self.servers:
            server.close()
        # In place: the requests that are being answered hold the same list.
        self.server_state.default_headers.append((b"connection", b"close"))
        waited = await self._wait_for_clients()
        if self.config.timeout_graceful_shutdown is not None:
            self.config.timeout_graceful_shutdown = max(0, self.config.timeout_graceful_shutdown - math.ceil(waited))
        await super().shutdown(sockets)

    async def _wait_for_clients(self) -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        patience = min(self.config.timeout_keep_alive, self.config.timeout_graceful_shutdown or math.inf)
        waited = 0.0
        # The first turn is for a connection that was accepted just now, which is not among the open ones yet.
        while waited == 0 or (self.server_state.connections and waited < patience and not self.force_exit):
            if self.config.callback_notify is not None:
                await self.config.callback_notify()
            await asyncio.sleep(TURN_SECONDS)
            waited = loop.time() - started
        return waited
