"""From a migrated database on a coordinator to one that is distributed: the steps that are missing, one by one.

Each step is looked for in the catalog, so a plan holds what is missing and nothing else: a run that was cut short is
gone on with, and of a database that is distributed the plan is empty.  Each is one transaction.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Connection, MetaData, Table, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution import cluster, profile
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.guards import Function, Guards, Policy
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, ROLES, SEARCH_ROLE, create_roles, policies
from ibex_db_core.schema.ddl import (
    create_function,
    create_guards,
    create_in_one_piece,
    create_indexes,
    store_in_one_piece,
)

SHARDS = 32
"""How many shards each table has where nobody says otherwise: Citus's own default."""

_MOST_SHARDS = 1024
_ASIDE = "ibex_distribute"

_SETTINGS: Mapping[str, tuple[str, str]] = {
    "citus.propagate_set_commands": (
        "local",
        "SET LOCAL reaches the workers: without it no policy finds a tenant there",
    ),
    "citus.enable_local_execution": ("off", "what runs on the coordinator itself skips WITH CHECK"),
    "citus.enable_unsafe_triggers": ("on", "triggers are made on shards; ours read and write their own organization"),
}

# Roles and settings of a node are that node's own; what is made here is made on each by name.
_APART = "".join(
    f"PERFORM set_config('citus.{name}', 'off', true); "
    for name in ("enable_ddl_propagation", "enable_create_role_propagation", "enable_alter_role_propagation")
)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        title: what is done.
        reason: why.
        statements: in order, in one transaction.
    """

    title: str
    reason: str
    statements: tuple[str, ...]


def plan(connection: Connection, models: MetaData, *, shards: int = SHARDS) -> list[Step]:
    """Return the steps that are missing, in order.

    Args:
        connection: of a superuser of the coordinator.
        models: the installed wheels'.
        shards: of each table, 1 to 1024; of a database that is distributed already, what it has stays.

    Raises:
        InvalidInputError: another number of shards.
        MigrationError: a database that cannot be distributed, and what to do.
    """
    if not 1 <= shards <= _MOST_SHARDS:
        raise InvalidInputError("shards", shards, f"must be from 1 to {_MOST_SHARDS}")
    state = cluster.look(connection)
    return [step for steps in _STEPS for step in steps(connection, models, state, shards)]


def distribute(
    connection: Connection, models: MetaData, *, shards: int = SHARDS, told: Callable[[Step], None] | None = None
) -> list[Step]:
    """Take the steps that are missing; return them.

    Raises:
        MigrationError: a database that cannot be distributed; or a node refused a step, which was rolled back.
    """
    steps = plan(connection, models, shards=shards)
    connection.rollback()
    for step in steps:
        if told is not None:
            told(step)
        for setting in _MEANWHILE:
            connection.exec_driver_sql(setting)
        for statement in step.statements:
            if "run_command_on" in statement:
                cluster.answers(connection, statement)
            else:
                connection.exec_driver_sql(statement)
        connection.commit()
    return steps


# Sequential: a foreign key to organizations, which lie on every node, wants one connection a node.
_MEANWHILE = (
    "SET LOCAL citus.enable_unsafe_triggers = on",
    "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
    "SET LOCAL citus.enable_alter_role_set_propagation = off",
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL client_min_messages = warning",
)

# -- nodes

_ROLES_THERE = """SELECT coalesce(json_agg(json_build_array(r.rolname, r.rolcanlogin, ARRAY(
    SELECT g.rolname::text FROM pg_auth_members a JOIN pg_roles g ON g.oid = a.roleid WHERE a.member = r.oid
    ORDER BY 1))), '[]') FROM pg_roles r"""


def _roles(connection: Connection, _models: MetaData, state: cluster.State, _shards: int) -> Iterator[Step]:
    wanted = {(role, role) for role in ROLES} | set(state.logins) | {(OWNER_ROLE, SEARCH_ROLE)}
    here = json.loads(str(connection.scalar(text(f"SELECT ({_ROLES_THERE})::text"))))
    for there in (here, *cluster.everywhere(connection, _ROLES_THERE)):
        known = {role: set(groups) | {role} for role, can_login, groups in there if can_login}
        if any(group not in known.get(role, ()) for role, group in wanted):
            break
    else:
        return
    commands = [
        *(_inner(statement) for statement in create_roles()),
        *(f"BEGIN CREATE ROLE {login}; EXCEPTION WHEN duplicate_object THEN NULL; END" for login, _ in state.logins),
        *(f"ALTER ROLE {role} LOGIN" for role in sorted({role for role, _ in wanted})),
        *(f"GRANT {group} TO {role}" for role, group in sorted(wanted) if group != role),
    ]
    yield Step(
        "Roles on every node",
        "a node connects to another as whoever its session is, and Citus makes a worker's roles like the "
        "coordinator's whenever it makes them: so each may log in on every node, and has no password; pg_hba.conf "
        "lets the nodes in by certificate or address, and nobody else under these names",
        (
            "SET LOCAL citus.enable_alter_role_propagation = off",
            *(f"ALTER ROLE {role} LOGIN" for role in sorted(ROLES)),
            cluster.on_workers(f"DO $ibex_do$ BEGIN {_APART}{'; '.join(commands)}; END $ibex_do$"),
        ),
    )


def _inner(statement: str) -> str:
    """Return what a DO block does, to be part of another."""
    return statement.partition("$$ ")[2].rpartition("; END $$")[0] + "; END"


def _settings(connection: Connection, _models: MetaData, _state: cluster.State, _shards: int) -> Iterator[Step]:
    # Asked of the catalog: this session may be older than the setting.
    found = connection.scalars(
        text(
            "SELECT unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d "
            "ON d.oid = s.setdatabase WHERE d.datname = current_database() AND s.setrole = 0"
        )
    ).all()
    missing = {name: value for name, (value, _) in _SETTINGS.items() if f"{name}={value}" not in found}
    if missing:
        database = connection.scalar(text("SELECT quote_ident(current_database())"))
        yield Step(
            "Settings of the database, on the coordinator",
            "; ".join(f"{name} = {_SETTINGS[name][0]}: {_SETTINGS[name][1]}" for name in missing),
            (
                # On the coordinator alone: a trigger on a shard reads its neighbours by local execution.
                "SET LOCAL citus.enable_ddl_propagation = off",
                *(f"ALTER DATABASE {database} SET {name} = {value}" for name, value in missing.items()),
                cluster.on_workers(
                    f"DO $ibex_do$ BEGIN {_APART}ALTER DATABASE {database} RESET citus.enable_local_execution; "
                    "END $ibex_do$"
                ),
            ),
        )


_SCHEMA_THERE = f"""SELECT coalesce((SELECT to_json(nspowner::regrole::text || ' ' || nspacl::text)
    FROM pg_namespace WHERE nspname = '{SCHEMA}'), 'null')"""


def _schema(connection: Connection, _models: MetaData, _state: cluster.State, _shards: int) -> Iterator[Step]:
    users = (APP_ROLE, PLATFORM_ROLE, SEARCH_ROLE)
    told = [str(said) for said in cluster.everywhere(connection, _SCHEMA_THERE)]
    if all(said.startswith(f"{OWNER_ROLE} ") and all(f"{role}=U" in said for role in users) for said in told):
        return
    commands = (
        f"CREATE SCHEMA IF NOT EXISTS {SCHEMA} AUTHORIZATION {OWNER_ROLE}",
        f"ALTER SCHEMA {SCHEMA} OWNER TO {OWNER_ROLE}",
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {', '.join(users)}",
    )
    yield Step(
        "The schema on the workers",
        "owned there by the same role, which checks foreign keys, and open to the same roles",
        (cluster.on_workers(f"DO $ibex_do$ BEGIN {_APART}{'; '.join(commands)}; END $ibex_do$"),),
    )


# -- functions


def _functions(connection: Connection, models: MetaData, _state: cluster.State, _shards: int) -> Iterator[Step]:
    wanted = profile.functions(models)
    body = text("SELECT p.prosrc FROM pg_catalog.pg_proc p WHERE p.oid = to_regprocedure(:signature)")
    differ = [one for one in wanted if connection.scalar(body, {"signature": _signature(one)}) != one.body]
    if differ:
        yield Step(
            "Functions as they are on shards",
            "no distributed query takes a transition table; and SET NULL of a foreign key is done by a trigger",
            (f"SET LOCAL ROLE {OWNER_ROLE}", *(_replaced(one) for one in differ), "SET LOCAL ROLE NONE"),
        )


def _replaced(function: Function) -> str:
    return function.create()


def _signature(function: Function) -> str:
    """Return the function's name with its arguments' types, as to_regprocedure() takes it."""
    arguments = [argument.strip().partition(" ")[2] for argument in function.arguments.split(",") if argument.strip()]
    return f"{function.schema}.{function.name}({', '.join(arguments)})"


def _definers(connection: Connection, models: MetaData, _state: cluster.State, _shards: int) -> Iterator[Step]:
    """Yield what makes the functions that searches call, on the workers."""
    definers = [one for one in _all_functions(models) if one.definer is not None]
    for function in definers:
        there = cluster.everywhere(
            connection,
            f"SELECT coalesce((SELECT to_json(p.proowner::regrole::text || p.prosrc) FROM pg_proc p "
            f"WHERE p.oid = to_regprocedure('{_signature(function)}')), 'null')",
        )
        pushed = profile.on_worker(function)
        if all(said == f"{function.definer}{pushed.body}" for said in there):
            continue
        made = "; ".join(f"EXECUTE $ibex_sql${statement}$ibex_sql$" for statement in create_function(pushed))
        yield Step(
            f"{function.name} on the workers",
            "a search is sent to the one worker that has the organization, with the function that it calls",
            (cluster.on_workers(f"DO $ibex_do$ BEGIN {_APART}{made}; END $ibex_do$"),),
        )


def _all_functions(models: MetaData) -> Sequence[Function]:
    return [one for table in models.sorted_tables for one in cast("Guards", table.info["guards"]).functions]


# -- tables


def _loosen(_connection: Connection, models: MetaData, state: cluster.State, _shards: int) -> Iterator[Step]:
    tables = [profile.REFERENCE, *(table.name for table in profile.distributed(models))]
    if all(state.kinds.get(table) not in {None, "local"} for table in tables):
        return
    # A key between two that are distributed may stay.
    loose = [
        (name, table)
        for (name, table), (parent, _) in state.foreign_keys.items()
        if "local" in {state.kinds.get(table), state.kinds.get(parent.rpartition(".")[2], "local")}
    ]
    if loose:
        yield Step(
            "Foreign keys away, for as long as tables are distributed",
            "Citus would take every table that a key leads to along, and refuses ON DELETE SET NULL with org_id; "
            "they come back below, and are checked then",
            tuple(f"ALTER TABLE {SCHEMA}.{table} DROP CONSTRAINT {name}" for name, table in sorted(loose)),
        )


def _in_one_piece(_connection: Connection, models: MetaData, state: cluster.State, _shards: int) -> Iterator[Step]:
    for table in profile.distributed(models):
        if table.name in state.partitioned and state.kinds[table.name] == "local":
            yield Step(
                f"{table.name} in one piece",
                "shards do what partitions did; and on the shard of a partition Citus forgets how a column is stored",
                tuple(_put_together(table)),
            )


def _put_together(table: Table) -> Iterator[str]:
    columns = ", ".join(f'"{column.name}"' for column in table.columns if column.computed is None)
    yield f"LOCK TABLE {SCHEMA}.{table.name} IN ACCESS EXCLUSIVE MODE"
    yield f"CREATE SCHEMA {_ASIDE} AUTHORIZATION {OWNER_ROLE}"
    yield f"ALTER TABLE {SCHEMA}.{table.name} SET SCHEMA {_ASIDE}"
    yield f"SET LOCAL ROLE {OWNER_ROLE}"
    yield create_in_one_piece(table)
    yield from store_in_one_piece(table)
    yield "SET LOCAL ROLE NONE"  # whom no policy binds
    yield f"INSERT INTO {SCHEMA}.{table.name} ({columns}) SELECT {columns} FROM {_ASIDE}.{table.name}"
    yield f"DROP TABLE {_ASIDE}.{table.name}"
    yield f"DROP SCHEMA {_ASIDE}"
    yield f"SET LOCAL ROLE {OWNER_ROLE}"
    yield from create_indexes(table)
    yield from create_guards(table)
    yield "SET LOCAL ROLE NONE"


def _tables(_connection: Connection, models: MetaData, state: cluster.State, shards: int) -> Iterator[Step]:
    if state.kinds.get(profile.REFERENCE) == "local":
        yield Step(
            f"{profile.REFERENCE} on every node",
            "every foreign key of org_id leads there, and a node checks it for itself",
            (f"SELECT create_reference_table('{SCHEMA}.{profile.REFERENCE}')",),
        )
    tables = profile.distributed(models)
    first = next((table.name for table in tables if state.kinds.get(table.name) == "hash"), None)
    for table in tables:
        if state.kinds.get(table.name) != "local":
            continue
        place = (
            f"colocate_with => '{SCHEMA}.{first}'"
            if first is not None
            else (f"colocate_with => 'none', shard_count => {shards}")
        )
        triggers = profile.own_triggers(table)
        yield Step(
            f"{table.name} by organization",
            "an organization's rows of every table lie on one worker, beside each other; triggers come after the rows, "
            "or they would fire for each",
            (
                *(f"DROP TRIGGER {trigger.name} ON {SCHEMA}.{table.name}" for trigger in triggers),
                f"SELECT create_distributed_table('{SCHEMA}.{table.name}', 'org_id', {place})",
                *(trigger.create() for trigger in triggers),
            ),
        )
        first = first or table.name


def _tie(_connection: Connection, models: MetaData, state: cluster.State, _shards: int) -> Iterator[Step]:
    wanted = profile.foreign_keys(models)
    gone = {key for key in wanted if key not in state.foreign_keys}
    # Of a plan that begins at the beginning all are missing by now.
    tables = {table.name for table in profile.distributed(models)}
    if any(state.kinds.get(table) == "local" for table in (profile.REFERENCE, *tables)):
        gone = {
            (name, table)
            for name, table in wanted
            if (name, table) in gone
            or "local" in {state.kinds.get(table), state.kinds.get(_parent(state, name, table), "local")}
        }
    if gone:
        yield Step(
            "Foreign keys again",
            "each is checked on its shard; where the link is optional, deleting there is NO ACTION, and a trigger "
            "has set it to NULL before",
            tuple(wanted[key] for key in sorted(gone, key=lambda key: (key[1], key[0]))),
        )


def _parent(state: cluster.State, name: str, table: str) -> str:
    return state.foreign_keys.get((name, table), ("", ""))[0].rpartition(".")[2]


# Of one node: each table and each shard of these names, with its floor, as the catalog has it.
_FLOORS_THERE = """SELECT coalesce(json_object_agg(c.relname, ARRAY(
    SELECT p.polcmd::text || p.polpermissive::text || ARRAY(
        SELECT r.rolname::text FROM pg_roles r WHERE r.oid = ANY (p.polroles) ORDER BY 1)::text
        || coalesce(pg_get_expr(p.polqual, p.polrelid), '') || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
      FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname ~ '_floor$')), '{{}}')
    FROM pg_class c WHERE c.relnamespace = to_regnamespace('{schema}') AND c.relkind IN ('r', 'p')
     AND c.relname ~ '^({names})(_[0-9]{{6,}})?$'"""
_NUMBER = re.compile(r"_[0-9]{6,}$")


def _floors(connection: Connection, models: MetaData, state: cluster.State, _shards: int) -> Iterator[Step]:
    tables = [
        *(table for table in models.sorted_tables if table.name == profile.REFERENCE),
        *profile.distributed(models),
    ]
    query = _FLOORS_THERE.format(schema=SCHEMA, names="|".join(table.name for table in tables))
    own = cast("Mapping[str, object]", json.loads(str(connection.exec_driver_sql(f"SELECT ({query})::text").scalar())))
    floors = [one for there in (own, *cluster.everywhere(connection, query)) for one in there.items()]
    if not state.begun or any(floor != own.get(_NUMBER.sub("", name)) for name, floor in floors):
        lacking = [(table, policy) for table in tables for policy in _restrictive(table)]
        yield Step(
            "Floors under the policies of every shard",
            "Citus makes shards without AS RESTRICTIVE, and so a second policy, added by mistake, would open them",
            tuple(
                statement
                for table, policy in lacking
                for statement in (
                    cluster.on_placements(table.name, _floor(policy, "%1$s")),
                    cluster.on_workers(_floor(policy, f"{SCHEMA}.{table.name}", _APART)),
                )
            ),
        )


def _restrictive(table: Table) -> Sequence[Policy]:
    return [one for one in policies(table.name, tenant_column=str(table.info["tenant_column"])) if not one.permissive]


def _floor(policy: Policy, table: str, before: str = "") -> str:
    return (
        f"DO $ibex_do$ BEGIN {before}DROP POLICY IF EXISTS {policy.name} ON {table}; "
        f"{policy.create(table)}; END $ibex_do$"
    )


def _triggers(connection: Connection, models: MetaData, _state: cluster.State, _shards: int) -> Iterator[Step]:
    there = text(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = to_regclass(:table) AND t.tgname = :name)"
    )
    missing = [
        trigger
        for table, trigger in profile.triggers(models)
        if not connection.scalar(there, {"table": f"{SCHEMA}.{table}", "name": trigger.name.strip('"')})
    ]
    if missing:
        yield Step(
            "Triggers that unlink",
            "in place of ON DELETE SET NULL: what points at a row that goes points nowhere afterwards",
            (f"SET LOCAL ROLE {OWNER_ROLE}", *(trigger.create() for trigger in missing), "SET LOCAL ROLE NONE"),
        )


_STEPS = (_roles, _settings, _schema, _functions, _loosen, _in_one_piece, _tables, _definers, _triggers, _tie, _floors)
