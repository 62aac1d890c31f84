"""Keys and constraints."""

from faults.fault import Fault, made

KEYS = [
    Fault(
        "key-without-org",
        "notes_other_fkey on ibex_core.notes",
        made("others")
        + made("notes")
        + "ALTER TABLE ibex_core.others ADD CONSTRAINT others_id_key UNIQUE (id);"
        + "ALTER TABLE ibex_core.notes ADD CONSTRAINT notes_other_fkey FOREIGN KEY (other_id) "
        "REFERENCES ibex_core.others (id) ON DELETE SET NULL",
        frozenset({"unique-without-org", "table-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "users_email_key on ibex_core.users",
        "CREATE UNIQUE INDEX users_email_key ON ibex_core.users (email_lower)",
        frozenset({"index-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "users_email_key on ibex_core.users",
        "ALTER TABLE ibex_core.users ADD CONSTRAINT users_email_key UNIQUE (email, org_id)",
        frozenset({"constraint-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "memories_p00_once on ibex_core.memories_p00",
        "CREATE UNIQUE INDEX memories_p00_once ON ibex_core.memories_p00 (content_hash)",
    ),
    Fault(
        "unique-without-org",
        "tokens_org_id_token_hash_key on ibex_core.tokens",
        "ALTER TABLE ibex_core.tokens DROP CONSTRAINT tokens_org_id_token_hash_key,"
        " ADD CONSTRAINT tokens_org_id_token_hash_key UNIQUE (token_hash)",
        frozenset({"constraint-changed"}),
    ),
    Fault(
        "constraint-missing",
        "memories_confidence_range on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_confidence_range",
    ),
    Fault(
        "constraint-missing",
        "sessions_session_status_known on ibex_core.sessions",
        "ALTER TABLE ibex_core.sessions DROP CONSTRAINT sessions_session_status_known",
    ),
    Fault(
        "constraint-missing",
        "memories_org_id_agent_id_fkey on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_org_id_agent_id_fkey",
    ),
    Fault(
        "constraint-changed",
        "memories_confidence_range on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_confidence_range,"
        " ADD CONSTRAINT memories_confidence_range CHECK (confidence >= 0)",
    ),
    Fault(
        "constraint-changed",
        "agents_org_id_created_by_fkey on ibex_core.agents",
        "ALTER TABLE ibex_core.agents DROP CONSTRAINT agents_org_id_created_by_fkey,"
        " ADD CONSTRAINT agents_org_id_created_by_fkey FOREIGN KEY (org_id, created_by)"
        " REFERENCES ibex_core.users (org_id, id) ON DELETE CASCADE",
    ),
    Fault(
        "constraint-unknown",
        "users_short on ibex_core.users",
        "ALTER TABLE ibex_core.users ADD CONSTRAINT users_short CHECK (length(name) < 20)",
    ),
    Fault(
        "constraint-not-valid",
        "users_name_length on ibex_core.users",
        "ALTER TABLE ibex_core.users DROP CONSTRAINT users_name_length, ADD CONSTRAINT users_name_length"
        r" CHECK (char_length(name) BETWEEN 1 AND 255 AND name ~ '\S') NOT VALID",
    ),
    Fault(
        "constraint-not-valid",
        "agents_org_id_created_by_fkey on ibex_core.agents",
        "ALTER TABLE ibex_core.agents DROP CONSTRAINT agents_org_id_created_by_fkey,"
        " ADD CONSTRAINT agents_org_id_created_by_fkey FOREIGN KEY (org_id, created_by)"
        " REFERENCES ibex_core.users (org_id, id) ON DELETE SET NULL (created_by) NOT VALID",
    ),
]
