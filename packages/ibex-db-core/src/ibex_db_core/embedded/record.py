"""`server.json`: what the process that starts a server tells the supervisor and every later client."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ibex_db_core.embedded.cluster import write_private


@dataclass(frozen=True)
class ServerRecord:
    """One running server; `remove` lists the folders that go when it stops."""

    arguments: list[str]
    environment: dict[str, str]
    user: int | None
    group: int | None
    groups: list[int] | None
    data: str
    major: int
    port: int
    socket_folder: str
    tcp: bool
    durable: bool
    remove: list[str]

    @classmethod
    def load(cls, home: Path) -> "ServerRecord | None":
        """The newest record of this home; None where no server has run, or another version of ibex-db wrote it."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((home / "server.json").read_text()))
        return None

    def save(self, home: Path) -> None:
        """Replace the record, for this user's eyes only."""
        write_private(home / "server.json", json.dumps(asdict(self), indent=1))
