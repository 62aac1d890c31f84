"""The error tree of core."""


class IbexError(Exception):
    """The root of every error that ibex-db raises."""


class EmbeddedPostgresError(IbexError):
    """The embedded Postgres cannot run here."""
