"""Tables that are not what they were made as."""

from faults.fault import AGENTS, Fault, made

TABLES = [
    Fault("rls-disabled", AGENTS, "ALTER TABLE ibex_core.agents DISABLE ROW LEVEL SECURITY"),
    Fault("rls-disabled", "ibex_core.memories_p03", "ALTER TABLE ibex_core.memories_p03 DISABLE ROW LEVEL SECURITY"),
    Fault("rls-not-forced", AGENTS, "ALTER TABLE ibex_core.agents NO FORCE ROW LEVEL SECURITY"),
    Fault("rls-not-forced", "ibex_core.memories_p03", "ALTER TABLE ibex_core.memories_p03 NO FORCE ROW LEVEL SECURITY"),
    Fault(
        "rls-disabled",
        "ibex_core.notes",
        "CREATE TABLE ibex_core.notes (org_id uuid PRIMARY KEY); ALTER TABLE ibex_core.notes OWNER TO ibex_owner",
        frozenset(
            {"rls-not-forced", "policy-missing", "policy-floor-missing", "grant-missing", "trigger-missing"}
            | {"table-unknown"}
        ),
    ),
    Fault("table-unknown", "ibex_core.notes", made("notes")),
    Fault("table-unknown", "ibex_core.flags", "SET LOCAL ROLE ibex_owner; CREATE TABLE ibex_core.flags (id int)"),
    Fault("table-owner", AGENTS, "ALTER TABLE ibex_core.agents OWNER TO CURRENT_USER"),
    Fault("table-unlogged", "ibex_core.tokens", "ALTER TABLE ibex_core.tokens SET UNLOGGED"),
    Fault(
        "org-nullable",
        "ibex_core.notes.org_id",
        made("notes") + "ALTER TABLE ibex_core.notes DROP CONSTRAINT notes_pkey, ALTER org_id DROP NOT NULL",
        frozenset({"table-unknown"}),
    ),
    Fault(
        "table-rule",
        "spy on ibex_core.users",
        "CREATE RULE spy AS ON INSERT TO ibex_core.users DO ALSO NOTIFY users",
    ),
    Fault("table-heir", "public.more", "CREATE TABLE public.more () INHERITS (ibex_core.users)"),
    Fault("table-heir", "public.more", "CREATE TABLE public.more () INHERITS (ibex_core.signing_keys)"),
    Fault("table-heir", "public.memories_p09", "ALTER TABLE ibex_core.memories_p09 SET SCHEMA public"),
]
