"""Seeing what the library does: traces and metrics for OpenTelemetry, tags on statements, logs without secrets.

Nothing here imports OpenTelemetry before a Database is given a Telemetry.
"""

from ibex_db_core.telemetry.redaction import Redaction, redact
from ibex_db_core.telemetry.settings import Telemetry
from ibex_db_core.telemetry.tags import QueryTags, tagged

__all__ = ["QueryTags", "Redaction", "Telemetry", "redact", "tagged"]
