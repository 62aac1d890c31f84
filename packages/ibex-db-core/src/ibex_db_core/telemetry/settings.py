"""Telemetry: what a Database tells OpenTelemetry, and whom."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ibex_db_core import validation
from ibex_db_core.errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from ibex_db_core.telemetry.watch import Watch

__all__ = ["Telemetry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a Database tells OpenTelemetry: spans and metrics, never contents, tokens, vectors or statements' values.

    Needs the extra ``otel``; docs/operations/telemetry.md lists every span, attribute and metric.

    Attributes:
        tracer_provider: whom spans are given to; None: the one that the service has set.
        meter_provider: whom metrics are given to; None: the one that the service has set.
        org: how spans name the organization: ``plain``, its id; ``hashed``, 16 hexadecimal digits of the id's
            SHA-256; ``off``, not at all.  Metrics never name it.
        verbs: a span for each verb of a repository too, not for units of work alone.
        recall_guard: the share of index searches, in [0, 1], that are answered a second time by a full scan, in
            the same transaction, to record how much of the truth the index found.  What the caller gets is the
            first answer.  Each costs two round trips more, and reads the whole scope.

    Raises:
        InvalidInputError: a value that breaks its rule.
    """

    tracer_provider: "TracerProvider | None" = None
    meter_provider: "MeterProvider | None" = None
    org: Literal["plain", "hashed", "off"] = "plain"
    verbs: bool = True
    recall_guard: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.org not in {"plain", "hashed", "off"}:
            raise InvalidInputError("org", self.org, "must be 'plain', 'hashed' or 'off'")
        if not math.isfinite(validation.number("recall_guard", self.recall_guard, 0, 1)):
            raise InvalidInputError("recall_guard", self.recall_guard, "must be a share in [0, 1]")

    def start(self) -> "Watch":
        """Return what watches one Database.

        Raises:
            ConfigurationError: OpenTelemetry is not installed.
        """
        try:
            from ibex_db_core.telemetry.watch import Watch
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] != "opentelemetry":
                raise
            raise ConfigurationError(
                "telemetry needs OpenTelemetry's API, which is not installed: uv add 'ibex-db-core[otel]'"
            ) from exc
        return Watch(self)
