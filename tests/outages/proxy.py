"""A network that can be made to fail: a TCP proxy on loopback before a server, which cuts, resets and stalls."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy import URL

# Unset l_linger seconds after close(): the kernel sends RST in place of FIN, and throws away what is in its buffers.
_AT_ONCE = struct.pack("ii", 1, 0)
_CHUNK = 65_536


@dataclass
class Proxy:
    """What passes, and what does not.

    Attributes:
        port: that it listens on, on 127.0.0.1.
        answers_passed: how many bytes of answers may pass before every connection is reset; None: any number.
    """

    port: int = 0
    answers_passed: int | None = None
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    def address(self, url: URL) -> URL:
        """Return the address that leads through the proxy."""
        return URL.create(url.drivername, url.username, url.password, "127.0.0.1", self.port, url.database)

    @property
    def connections(self) -> int:
        """How many are open: each has two ends."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Close every connection, as a load balancer that restarts does: both sides read an end."""
        for writer in list(self._writers):
            writer.close()

    def reset(self) -> None:
        """Reset every connection, as a firewall that has forgotten them does: both sides get ECONNRESET."""
        for writer in list(self._writers):
            _reset(writer)

    def stall(self) -> None:
        """Let nothing through either way, and tell nobody, until resume()."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let everything through again, what was held back included."""
        self._flowing.set()

    async def carry(self, server: URL, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        try:
            upstream = await _connect(server)
        except OSError:
            _reset(writer)
            return
        ends = {writer, upstream[1]}
        self._writers |= ends
        try:
            await asyncio.gather(self._pass(reader, upstream[1]), self._pass(upstream[0], writer, answers=True))
        finally:
            self._writers -= ends

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                await self._flowing.wait()
                if answers and self.answers_passed is not None:
                    writer.write(chunk[: self.answers_passed])
                    self.answers_passed -= len(chunk)
                    if self.answers_passed <= 0:
                        await writer.drain()
                        self.answers_passed = None
                        self.reset()
                        return
                else:
                    writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def _connect(server: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host = server.host or str(server.query.get("host", "127.0.0.1"))
    port = server.port or int(str(server.query.get("port", 5432)))
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


def _reset(writer: asyncio.StreamWriter) -> None:
    held: socket.socket | None = writer.get_extra_info("socket")
    # -1: it broke by itself, and the loop has not told us yet.
    if held is not None and held.fileno() >= 0 and held.family == socket.AF_INET:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


@asynccontextmanager
async def proxy(server: URL) -> AsyncGenerator[Proxy]:
    """Open one before a server."""
    made = Proxy()
    made.resume()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await made.carry(server, reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        made.resume()
        made.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
