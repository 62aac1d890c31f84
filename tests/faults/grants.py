"""Grants and schemas that let in who should stay out."""

from faults.fault import Fault

GRANTS = [
    Fault("grant-public", "ibex_core.users to PUBLIC", "GRANT SELECT ON ibex_core.users TO PUBLIC"),
    Fault("grant-excess", "ibex_core.users to ibex_app", "GRANT TRUNCATE ON ibex_core.users TO ibex_app"),
    Fault("grant-excess", "ibex_core.users to ibex_app", "GRANT REFERENCES, TRIGGER ON ibex_core.users TO ibex_app"),
    Fault(
        "grant-excess", "ibex_core.memory_versions to ibex_app", "GRANT UPDATE ON ibex_core.memory_versions TO ibex_app"
    ),
    Fault("grant-excess", "ibex_core.users to ibex_search", "GRANT SELECT ON ibex_core.users TO ibex_search"),
    Fault(
        "grant-excess",
        "ibex_core.users to ibex_app",
        "GRANT SELECT ON ibex_core.users TO ibex_app WITH GRANT OPTION",
    ),
    Fault(
        "grant-excess",
        "ibex_core.flags to ibex_app",
        "SET LOCAL ROLE ibex_owner; CREATE TABLE ibex_core.flags (id int); GRANT ALL ON ibex_core.flags TO ibex_app",
        frozenset({"table-unknown"}),
    ),
    Fault(
        "grant-column", "ibex_core.users.email to ibex_search", "GRANT SELECT (email) ON ibex_core.users TO ibex_search"
    ),
    Fault(
        "grant-column",
        "ibex_core.memory_versions.content to ibex_app",
        "GRANT UPDATE (content) ON ibex_core.memory_versions TO ibex_app",
    ),
    Fault(
        "grant-partition", "ibex_core.memories_p01 to ibex_app", "GRANT SELECT ON ibex_core.memories_p01 TO ibex_app"
    ),
    Fault(
        "grant-other",
        "ibex_core.users to doctor_analyst",
        "CREATE ROLE doctor_analyst; GRANT SELECT ON ibex_core.users TO doctor_analyst",
    ),
    Fault("grant-missing", "ibex_core.users to ibex_app", "REVOKE DELETE ON ibex_core.users FROM ibex_app"),
    Fault(
        "grant-missing",
        "ibex_core.memories.search_vector to ibex_search",
        "REVOKE SELECT (search_vector) ON ibex_core.memories FROM ibex_search",
    ),
    Fault("grant-missing", "ibex_core to ibex_app", "REVOKE USAGE ON SCHEMA ibex_core FROM ibex_app"),
    Fault(
        "grant-default",
        "new tables of ibex_owner IN SCHEMA ibex_core to ibex_app",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ibex_owner IN SCHEMA ibex_core GRANT ALL ON TABLES TO ibex_app",
    ),
    Fault(
        "grant-default",
        "new tables of ibex_owner to PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ibex_owner GRANT SELECT ON TABLES TO PUBLIC",
    ),
    Fault(
        "grant-excess",
        "ibex_core.alembic_version to ibex_app",
        "GRANT SELECT, UPDATE ON ibex_core.alembic_version TO ibex_app",
    ),
    Fault(
        "grant-public",
        "ibex_core.alembic_version to PUBLIC",
        "GRANT SELECT (version_num) ON ibex_core.alembic_version TO PUBLIC",
    ),
    Fault("schema-create", "ibex_core to ibex_app", "GRANT CREATE ON SCHEMA ibex_core TO ibex_app"),
    Fault("schema-create", "public to PUBLIC", "GRANT CREATE ON SCHEMA public TO PUBLIC"),
    Fault("schema-usage", "ibex_core to PUBLIC", "GRANT USAGE ON SCHEMA ibex_core TO PUBLIC"),
    Fault("schema-owner", "ibex_core", "ALTER SCHEMA ibex_core OWNER TO CURRENT_USER"),
]
