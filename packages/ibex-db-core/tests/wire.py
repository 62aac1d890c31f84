"""A proxy between client and server that writes down the protocol messages that pass."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from sqlalchemy import URL

_PORT = 5432


@dataclass(frozen=True)
class Message:
    origin: Literal["client", "server"]
    kind: str
    body: bytes


@dataclass
class Wire:
    """What passed: in the order in which it passed, on all connections together.

    Attributes:
        folder: of the unix socket that the proxy listens on.
        messages: since the last clear().
        writers: of both ends of every connection.
        break_on: a client's simple query that starts so is not passed on: every connection breaks instead.
        break_after: so many more messages of the client's are passed on, and then every connection breaks.
        lingers: the client's end stays open when the server has closed its own: last words have come, and no end.
        flowing: cleared, nothing passes either way, and nobody is told: what a dropped route looks like.
    """

    folder: Path
    messages: list[Message] = field(default_factory=list[Message])
    writers: list[asyncio.StreamWriter] = field(default_factory=list[asyncio.StreamWriter])
    break_on: str | None = None
    break_after: int | None = None
    lingers: bool = False
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _prepared: dict[bytes, str] = field(default_factory=dict[bytes, str])

    def address(self, url: URL) -> URL:
        """Return the address that leads through the proxy."""
        return URL.create(
            url.drivername,
            url.username,
            url.password,
            database=url.database,
            query={"host": str(self.folder), "port": str(_PORT)},
        )

    def clear(self) -> None:
        self.messages.clear()

    @property
    def round_trips(self) -> int:
        """How often the client had to wait: the direction turned from client to server's answer."""
        origins = [message.origin for message in self.messages]
        return sum(now == "server" and before == "client" for before, now in pairwise(origins))

    @property
    def statements(self) -> list[str]:
        """The SQL that was executed, prepared statements at each execution."""
        return list(self._executed())

    @property
    def sent(self) -> bytes:
        """Every byte of every message of the client's."""
        return b"".join(message.body for message in self.messages if message.origin == "client")

    def cut(self) -> None:
        """Break every connection, as a failing network does."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def record(self, message: Message) -> None:
        if message.origin == "client" and message.kind == "P":
            name, sql, *_ = message.body.split(b"\0")
            self._prepared[name] = sql.decode()
        self.messages.append(message)

    def breaks(self, message: Message) -> bool:
        if self.break_after is not None and message.origin == "client":
            self.break_after -= 1
            return self.break_after < 0
        return self.break_on is not None and message.kind == "Q" and message.body.startswith(self.break_on.encode())

    def _executed(self) -> Iterator[str]:
        for message in self.messages:
            if message.origin != "client":
                continue
            if message.kind == "Q":
                yield message.body.rstrip(b"\0").decode()
            elif message.kind == "B":
                _portal, name, *_ = message.body.split(b"\0")
                yield self._prepared[name]


@asynccontextmanager
async def listen(upstream: URL) -> AsyncGenerator[Wire]:
    """Open the proxy before a server; the client must not ask for TLS, and does not on a unix socket."""
    host = upstream.host or str(upstream.query.get("host", "localhost"))
    port = upstream.port or int(str(upstream.query.get("port", _PORT)))
    with TemporaryDirectory(prefix="wire") as folder:
        wire = Wire(Path(folder))
        wire.flowing.set()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (task := asyncio.current_task()) is not None:
                tasks.add(task)
            if host.startswith("/"):
                server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                server = await asyncio.open_connection(host, port)
            wire.writers.extend((writer, server[1]))
            await asyncio.gather(
                _pass_on(wire, "client", reader, server[1], startup=True), _pass_on(wire, "server", server[0], writer)
            )

        listener = await asyncio.start_unix_server(serve, f"{folder}/.s.PGSQL.{_PORT}")
        try:
            yield wire
        finally:
            listener.close()
            wire.flowing.set()
            wire.cut()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(
    wire: Wire,
    origin: Literal["client", "server"],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    startup: bool = False,
) -> None:
    try:
        while True:
            # The start-up message alone has no type byte.
            kind = b"" if startup else await reader.readexactly(1)
            startup = False
            size = await reader.readexactly(4)
            body = await reader.readexactly(struct.unpack("!I", size)[0] - 4)
            message = Message(origin, kind.decode(), body)
            wire.record(message)
            if wire.breaks(message):
                wire.cut()
                return
            await wire.flowing.wait()
            writer.write(kind + size + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        if not (wire.lingers and origin == "server"):
            writer.close()
