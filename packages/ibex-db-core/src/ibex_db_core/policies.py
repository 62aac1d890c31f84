"""Roles, row-level security and grants: the statements that make a table tenant-isolated.

Everything here is SQL text; migrations execute it and the doctor compares a
live database with it.  Identifiers are our own, never a caller's.
"""

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import MetaData, Table

from ibex_db_core.base import SCHEMA
from ibex_db_core.guards import Function, Policy, Trigger

OWNER_ROLE = "ibex_owner"
APP_ROLE = "ibex_app"
PLATFORM_ROLE = "ibex_platform"
SEARCH_ROLE = "ibex_search"
ROLES = (OWNER_ROLE, APP_ROLE, PLATFORM_ROLE, SEARCH_ROLE)

TENANT_SETTING = "app.current_org_id"

# Bare and inline, on purpose.  A sub-select or a function around it hides the
# value from the planner (exact search instead of the index, and no partition
# pruning); without NULLIF, '' (what the setting reads on a connection that has
# once carried a tenant) would be an error instead of no rows.
TENANT_EXPRESSION = f"NULLIF(current_setting('{TENANT_SETTING}', true), '')::uuid"

SIGNATURE_SETTING = "app.current_org_signature"
SIGNING_KEYS = "signing_keys"
WINDOW = 10
"""Seconds that a signature's moment may be from the beginning of its transaction, either way."""

SIGNED_CALL = f"{SCHEMA}.signed_org()"

# Sub-selects here, on purpose, in both policies: each is read once for a
# statement and then stays.  Bare, the setting would be read anew by each index
# scan, after the signature was checked, and injected SQL may change it in
# between: a set_config() in a WHERE made a join return another tenant's rows.
SIGNED_EXPRESSION = f"(SELECT {SIGNED_CALL})"
FROZEN_EXPRESSION = f"(SELECT {TENANT_EXPRESSION})"


def tenant_predicate(column: str, expression: str = TENANT_EXPRESSION) -> str:
    """Return the one predicate that every tenant policy says."""
    return f"{column} = {expression}"


# A migration that hands the search function over must be able to become its new
# owner.  It may step into that role, and does not inherit its policy (before 16
# there was no such difference; the owner could switch row security off anyway).
SEARCH_TO_OWNER = f"""
DO $$ BEGIN
    IF current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE 'GRANT {SEARCH_ROLE} TO {OWNER_ROLE} WITH INHERIT FALSE, SET TRUE';
    ELSE
        EXECUTE 'GRANT {SEARCH_ROLE} TO {OWNER_ROLE}';
    END IF;
EXCEPTION WHEN unique_violation THEN NULL;
END $$
"""


def create_roles() -> list[str]:
    """Make the roles of the cluster, safely when many databases migrate at once.

    A role that exists is left as it is: the doctor, not a migration, judges a
    role that somebody else made.  Two sessions that race to create one both
    pass, for the loser's duplicate is caught.
    """
    return [
        f"DO $$ BEGIN "
        f"IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}') THEN "
        f"CREATE ROLE {role} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE; END IF; "
        f"EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        for role in ROLES
    ]


def secure(
    table: str,
    *,
    tenant_column: str = "org_id",
    append_only: bool = False,
    touched: bool = True,
    schema: str = SCHEMA,
    signed: bool = False,
) -> list[str]:
    """Return the statements that isolate one table.

    In a migration leave ``signed`` out: the runner signs what a revision makes, within its transaction.

    Args:
        table: its name, without schema.
        tenant_column: the column that names the organization.
        append_only: services may SELECT and INSERT only, and a trigger refuses UPDATE to everyone.
        touched: the table has updated_at, which a trigger keeps.
        schema: where the table is.
        signed: with the floor of a database that has signing on.
    """
    name = f"{schema}.{table}"
    verbs = ", ".join(privileges(append_only=append_only))
    return [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        *(policy.create(name) for policy in policies(table, tenant_column=tenant_column, signed=signed)),
        # Default privileges of the database may have granted some, TRUNCATE among them.
        f"REVOKE ALL ON {name} FROM PUBLIC, {', '.join(ROLES[1:])}",
        f"GRANT {verbs} ON {name} TO {APP_ROLE}, {PLATFORM_ROLE}",
        trigger(table, append_only=append_only, touched=touched, tenant_column=tenant_column, schema=schema).create(),
    ]


def secure_platform(table: str, *, schema: str = SCHEMA) -> list[str]:
    """Return the statements that keep one append-only table for the platform alone: no tenant reads or writes it."""
    name = f"{schema}.{table}"
    return [
        f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        platform_policy(table).create(name),
        f"REVOKE ALL ON {name} FROM PUBLIC, {', '.join(ROLES[1:])}",
        f"GRANT {', '.join(privileges(append_only=True))} ON {name} TO {PLATFORM_ROLE}",
        trigger(table, append_only=True, touched=False, schema=schema).create(),
    ]


def privileges(*, append_only: bool) -> tuple[str, ...]:
    """Return what services and the platform may do with a table; TRUNCATE is not among it, for it ignores policies."""
    return ("SELECT", "INSERT") if append_only else ("SELECT", "INSERT", "UPDATE", "DELETE")


def platform_policy(table: str) -> Policy:
    """Return the policy by which the platform sees every row of a table."""
    return Policy(f"{table}_platform", PLATFORM_ROLE, "true")


def policies(table: str, *, tenant_column: str = "org_id", signed: bool = False) -> list[Policy]:
    """Return the policies of one tenant table."""
    mine = tenant_predicate(tenant_column, FROZEN_EXPRESSION if signed else TENANT_EXPRESSION)
    # The floor: permissive policies are joined by OR, so a second one added by
    # mistake would open the table; a restrictive one is joined by AND.  So it is also
    # the one that demands the signature: nothing that is added later goes round it.
    ground = tenant_predicate(tenant_column, SIGNED_EXPRESSION) if signed else mine
    return [
        Policy(f"{table}_tenant", APP_ROLE, mine),
        Policy(f"{table}_floor", APP_ROLE, ground, permissive=False),
        platform_policy(table),
    ]


def trigger(
    table: str, *, append_only: bool, touched: bool, tenant_column: str = "org_id", schema: str = SCHEMA
) -> Trigger:
    """Return the one BEFORE UPDATE trigger: it keeps updated_at, holds org_id, or refuses the update."""
    if append_only:
        function = "refuse_update"
    elif tenant_column == "org_id":
        function = "touch_and_keep_org" if touched else "keep_org"
    else:
        function = "touch"
    return Trigger(
        f"{table}_before_update",
        f"BEFORE UPDATE ON {schema}.{table} FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.{function}()",
    )


def secure_all(metadata: MetaData) -> list[str]:
    """Return the statements for every tenant table of a metadata, parents first."""
    return [statement for table in tenant_tables(metadata) for statement in secure_table(table)]


def secure_table(table: Table, *, signed: bool = False) -> list[str]:
    """Return the statements for one mapped table, from the facts that Base leaves in its info."""
    return secure(
        table.name,
        tenant_column=str(table.info["tenant_column"]),
        append_only=bool(table.info["append_only"]),
        touched="updated_at" in table.columns,
        schema=table.schema or SCHEMA,
        signed=signed,
    )


def tenant_tables(metadata: MetaData) -> Iterable[Table]:
    """Yield the tables that hold tenants' rows, parents first."""
    return (table for table in metadata.sorted_tables if table.info.get("tenant_column"))


# Trigger functions.  None of them reads a table, so none needs a search_path.
_KEEP_ORG = """
    IF NEW.org_id IS DISTINCT FROM OLD.org_id THEN
        RAISE EXCEPTION 'org_id of % is immutable: a row never changes its organization', TG_TABLE_NAME
            USING ERRCODE = '42501', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;"""
_TOUCH = """
    NEW.updated_at := pg_catalog.now();"""
_REFUSE = """
    RAISE EXCEPTION '% is append-only: rows are never updated', TG_TABLE_NAME
        USING ERRCODE = '42501', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;"""

TRIGGER_FUNCTIONS = {
    "touch": _TOUCH,
    "keep_org": _KEEP_ORG,
    "touch_and_keep_org": _KEEP_ORG + _TOUCH,
    "refuse_update": _REFUSE,
}


def trigger_functions() -> list[Function]:
    """Return the functions that secure()'s triggers call."""
    return [Function(name, f"\nBEGIN{body}\n    RETURN NEW;\nEND ") for name, body in TRIGGER_FUNCTIONS.items()]


def create_trigger_functions() -> list[str]:
    """Make the functions that secure()'s triggers call."""
    return [function.create() for function in trigger_functions()]


def drop_trigger_functions() -> list[str]:
    """Undo create_trigger_functions()."""
    return [f"DROP FUNCTION {SCHEMA}.{name}()" for name in TRIGGER_FUNCTIONS]


# It reads the settings once, so they cannot change between the check and the
# answer.  The query of the keys has no variable in it: plpgsql keeps its plan for
# the connection, whatever plan_cache_mode says.  Nothing is cast before its
# signature holds, so that whatever stands in a setting ends in our own error.
_SIGNED_ORG = f"""
DECLARE
    org CONSTANT text := NULLIF(current_setting('{TENANT_SETTING}', true), '');
    signature CONSTANT text := COALESCE(current_setting('{SIGNATURE_SETTING}', true), '');
    moment CONSTANT text := split_part(signature, '.', 2);
    inner_block bytea;
    outer_block bytea;
BEGIN
    IF org IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT k.inner_pad, k.outer_pad INTO inner_block, outer_block FROM {SCHEMA}.{SIGNING_KEYS} k
    WHERE k.id = split_part(current_setting('{SIGNATURE_SETTING}', true), '.', 4)
        AND (k.valid_until IS NULL OR k.valid_until > now());
    IF encode(sha256(outer_block || sha256(inner_block || convert_to(
            current_database() || '.' || org || '.' || moment || '.' || pg_backend_pid(), 'UTF8'))), 'hex')
        = split_part(signature, '.', 1)
    THEN
        IF abs(extract(epoch FROM now()) - moment::bigint) <= {WINDOW} THEN
            RETURN org::uuid;
        END IF;
        RAISE EXCEPTION 'the signature of the tenant was made % seconds from the beginning of its transaction',
            round(abs(extract(epoch FROM now()) - moment::bigint)) USING ERRCODE = 'IB002';
    END IF;
    RAISE EXCEPTION 'the tenant of this transaction is not signed: %', CASE
        WHEN signature = '' THEN 'no signature came with it'
        WHEN signature !~ '^[0-9a-f]{{64}}[.][0-9]{{1,12}}[.][0-9]{{1,10}}[.][0-9a-f]{{8}}$'
            THEN 'the signature is malformed'
        WHEN inner_block IS NULL THEN 'the key ' || split_part(signature, '.', 4) || ' is not, or no longer, valid here'
        WHEN split_part(signature, '.', 3) <> pg_backend_pid()::text THEN 'the signature is that of another connection'
        ELSE 'the signature is that of another organization or database, or forged'
    END USING ERRCODE = 'IB001';
END """

SIGNED_ORG = Function(
    "signed_org",
    _SIGNED_ORG,
    result="uuid",
    volatility="STABLE",
    # A worker has a process id of its own, of which nobody signed anything.
    options="PARALLEL RESTRICTED",
    definer=OWNER_ROLE,
    callers=(APP_ROLE, SEARCH_ROLE),
    settings={"search_path": "pg_catalog, pg_temp"},
)


def signed_function(function: Function) -> Function:
    """Return what a function is where signing is on: it asks signed_org() where it read the setting itself."""
    if TENANT_EXPRESSION not in function.body:
        return function
    return replace(
        function, body=sign_text(function.body), options=function.options.replace(PARALLEL_SAFE, PARALLEL_RESTRICTED)
    )


PARALLEL_SAFE, PARALLEL_RESTRICTED = "PARALLEL SAFE", "PARALLEL RESTRICTED"


def sign_text(sql: str) -> str:
    """Return SQL that asks signed_org() in place of the setting."""
    return sql.replace(TENANT_EXPRESSION, SIGNED_CALL)


def unsign_text(sql: str) -> str:
    """Undo sign_text()."""
    return sql.replace(SIGNED_CALL, TENANT_EXPRESSION)
