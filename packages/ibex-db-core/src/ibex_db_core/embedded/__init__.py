"""A Postgres with pgvector out of a wheel, shared by every process of one user and gone with the last of them."""

import sys
from typing import TYPE_CHECKING

__all__ = ["EmbeddedPostgres"]

if TYPE_CHECKING or sys.platform != "win32":
    from ibex_db_core.embedded.server import EmbeddedPostgres
else:
    from ibex_db_core.errors import EmbeddedPostgresError

    class EmbeddedPostgres:
        """Stands where the server would, so that importing ibex-db works on Windows."""

        def __init__(self, *_args: object, **_options: object) -> None:
            raise EmbeddedPostgresError(
                "the embedded Postgres needs file locks and process signals that Windows does not have: "
                "set IBEX_DATABASE_URL to a Postgres 15+ with pgvector 0.8+"
            )

        @classmethod
        def throwaway(cls) -> "EmbeddedPostgres":
            """Raise, as the constructor does."""
            return cls()
