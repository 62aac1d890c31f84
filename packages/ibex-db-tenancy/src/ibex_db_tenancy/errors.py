"""Errors of the tenancy wheel, under core's tree.

IbexError
└── InvalidTokenError             a token that opens nothing
"""

from ibex_db_core.errors import IbexError

__all__ = ["InvalidTokenError"]


class InvalidTokenError(IbexError):
    """The token is not valid; whether malformed, unknown, expired or revoked is not told, on purpose."""
