"""Schemas that are not what the wheels expect."""

from faults.fault import Fault

DRIFT = [
    Fault("column-missing", "ibex_core.sessions.last_error", "ALTER TABLE ibex_core.sessions DROP COLUMN last_error"),
    Fault("column-unknown", "ibex_core.users.phone", "ALTER TABLE ibex_core.users ADD COLUMN phone text"),
    Fault("column-changed", "ibex_core.users.name", "ALTER TABLE ibex_core.users ALTER COLUMN name DROP NOT NULL"),
    Fault(
        "column-changed",
        "ibex_core.sessions.turn_count",
        "ALTER TABLE ibex_core.sessions ALTER COLUMN turn_count TYPE bigint",
    ),
    Fault(
        "column-changed",
        "ibex_core.memories.status",
        "ALTER TABLE ibex_core.memories ALTER COLUMN status SET DEFAULT 'archived'",
    ),
    Fault("table-missing", "ibex_core.memory_tags", "DROP TABLE ibex_core.memory_tags"),
    Fault(
        "drift",
        "ibex_core.users.email_lower",
        "ALTER TABLE ibex_core.users ALTER COLUMN email_lower SET EXPRESSION AS (upper(email))",
        mendable=False,
    ),
    Fault(
        "revision-pending",
        "memory_0013",
        "UPDATE ibex_core.alembic_version SET version_num = 'memory_0012' WHERE version_num = 'memory_0013'",
        mendable=False,
    ),
    Fault(
        "revision-unknown",
        "memory_9999",
        "INSERT INTO ibex_core.alembic_version VALUES ('memory_9999')",
        mendable=False,
    ),
]
