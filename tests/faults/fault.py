"""What a fault is, and what several of them are made of."""

import re
from dataclasses import dataclass

TENANT = "org_id = NULLIF(current_setting('app.current_org_id', true), '')::uuid"
AGENTS = "ibex_core.agents"
TENANTS = "'00000000-0000-4000-8000-000000000000'"
SERVICE = "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app"
STEP = "CREATE ROLE doctor_group; ALTER ROLE doctor_one NOINHERIT; GRANT doctor_group TO doctor_one"
PEEK = (
    "CREATE SCHEMA tools; CREATE FUNCTION tools.peek() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER"
    " AS 'SELECT count(*) FROM ibex_core.users'"
)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        code, object: the finding that it must give.
        sql: what makes it.
        also: codes of findings that come with it.
        mendable: the printed SQL mends it; False where only an installation or an upgrade does.
    """

    code: str
    object: str
    sql: str
    also: frozenset[str] = frozenset()
    mendable: bool = True

    def __str__(self) -> str:
        return f"{self.code}: {self.object}"


def spoken_since(sql: str) -> int:
    """Return the Postgres version whose words these are, where older ones that we run on do not know them; else 0."""
    if "SET EXPRESSION" in sql:
        return 17
    return 16 if re.search(r"\bWITH (ADMIN TRUE|INHERIT FALSE)", sql) else 0


def made(table: str) -> str:
    """A tenant table of somebody else's, as good as ours."""
    return f"""
        CREATE TABLE ibex_core.{table} (org_id uuid NOT NULL, id uuid, other_id uuid, PRIMARY KEY (org_id, id));
        ALTER TABLE ibex_core.{table} OWNER TO ibex_owner;
        ALTER TABLE ibex_core.{table} ENABLE ROW LEVEL SECURITY;
        ALTER TABLE ibex_core.{table} FORCE ROW LEVEL SECURITY;
        CREATE POLICY {table}_tenant ON ibex_core.{table} TO ibex_app USING ({TENANT}) WITH CHECK ({TENANT});
        CREATE POLICY {table}_floor ON ibex_core.{table} AS RESTRICTIVE TO ibex_app USING ({TENANT});
        CREATE POLICY {table}_platform ON ibex_core.{table} TO ibex_platform USING (true);
        GRANT SELECT, INSERT, UPDATE, DELETE ON ibex_core.{table} TO ibex_app, ibex_platform;
        CREATE TRIGGER {table}_before_update BEFORE UPDATE ON ibex_core.{table}
            FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_org();
    """
