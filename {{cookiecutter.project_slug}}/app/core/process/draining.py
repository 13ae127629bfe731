"""Graceful shutdown of a worker: drain the open connections, and let idle ones time out."""

import asyncio
import math
import socket

import uvicorn

TURN_SECONDS = 0.05


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains its connections before it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, close each open one with its next response, and stop once all are closed.

        Idle connections close KEEPALIVE_SECONDS after their last response, which limits the wait.
        """
        for server in self.servers:
            server.close()
        # Append in place: the requests in progress share this list.
        self.server_state.default_headers.append((b"connection", b"close"))
        waited = await self._wait_for_clients()
        if self.config.timeout_graceful_shutdown is not None:
            self.config.timeout_graceful_shutdown = max(0, self.config.timeout_graceful_shutdown - math.ceil(waited))
        await super().shutdown(sockets)

    async def _wait_for_clients(self) -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        max_wait = min(self.config.timeout_keep_alive, self.config.timeout_graceful_shutdown or math.inf)
        waited = 0.0
        # Loop at least once: a connection that was just accepted is not in server_state.connections yet.
        while waited == 0 or (self.server_state.connections and waited < max_wait and not self.force_exit):
            if self.config.callback_notify is not None:
                await self.config.callback_notify()
            await asyncio.sleep(TURN_SECONDS)
            waited = loop.time() - started
        return waited
