"""What is asked of a Citus cluster: the nodes, what is on each, and what of ours is distributed already."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.errors import MigrationError
from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE, SIGNING_KEYS

OLDEST = (12, 1)
"""The oldest Citus whose grants and policies reach the shards as ours need them."""

_QUOTE = "$ibex_node$"

_KINDS = """
    SELECT c.relname, p.partmethod::text, c.relkind::text
      FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_dist_partition p ON p.logicalrelid = c.oid
     WHERE c.relnamespace = to_regnamespace(:schema) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
_FOREIGN_KEYS = """
    SELECT k.conname, c.relname, k.confrelid::regclass::text, k.confdeltype::text FROM pg_catalog.pg_constraint k
      JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
     WHERE k.contype = 'f' AND k.conparentid = 0 AND c.relnamespace = to_regnamespace(:schema)
"""
# Whoever a service may connect as: its sessions reach the workers under the same name.
_LOGINS = f"""
    SELECT m.rolname, r.rolname FROM pg_catalog.pg_auth_members a
      JOIN pg_catalog.pg_roles m ON m.oid = a.member JOIN pg_catalog.pg_roles r ON r.oid = a.roleid
     WHERE m.rolcanlogin AND r.rolname IN ('{APP_ROLE}', '{PLATFORM_ROLE}') ORDER BY 1, 2
"""


@dataclass(frozen=True)
class State:
    """What there is.

    Attributes:
        version: of Citus.
        workers: host and port of each active worker.
        kinds: table to how it lies: hash, reference, or local.
        partitioned: tables in partitions.
        foreign_keys: name and table to the referenced table and what deleting there does, as pg_constraint says it.
        logins: each with its role.
    """

    version: tuple[int, ...]
    workers: Sequence[tuple[str, int]]
    kinds: Mapping[str, str]
    partitioned: frozenset[str]
    foreign_keys: Mapping[tuple[str, str], tuple[str, str]]
    logins: Sequence[tuple[str, str]]

    @property
    def begun(self) -> bool:
        """Whether any table is distributed."""
        return any(kind != "local" for kind in self.kinds.values())


def has_citus(connection: Connection) -> bool:
    """Tell whether the extension is in this database."""
    return bool(connection.scalar(text("SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')")))


def is_distributed(connection: Connection) -> bool:
    """Tell whether tables of ours are distributed: on any other database one look at the catalog."""
    if not has_citus(connection):
        return False
    distributed = text(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition p JOIN pg_catalog.pg_class c "
        "ON c.oid = p.logicalrelid WHERE c.relnamespace = to_regnamespace(:schema))"
    )
    return bool(connection.scalar(distributed, {"schema": SCHEMA}))


def look(connection: Connection) -> State:
    """Return what there is, and refuse a database that cannot be distributed.

    Raises:
        MigrationError: no Citus, one that is too old, not its coordinator, no worker, not migrated, signing is on, or
            a login that may not do it.
    """
    version = connection.scalar(text("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'citus'"))
    if version is None:
        raise MigrationError(
            "this database has no citus extension: put citus into shared_preload_libraries on every node, CREATE "
            "EXTENSION citus and vector in this database on each, and name the workers to the coordinator with "
            "citus_set_coordinator_host() and citus_add_node(); then run `ibex-db distribute` again"
        )
    found = tuple(int(part) for part in str(version).split("-")[0].split(".") if part.isdigit())
    if found < OLDEST:
        raise MigrationError(f"citus {version} is too old: {'.'.join(map(str, OLDEST))} or newer is needed")
    if not connection.scalar(text("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")):
        raise MigrationError(
            "distributing makes roles and settings on every node: name a superuser of the coordinator in owner_url "
            "(IBEX_OWNER_URL); services connect as before"
        )
    if connection.scalar(text("SELECT groupid <> 0 FROM pg_catalog.pg_dist_local_group")):
        raise MigrationError("this is a worker: connect to the coordinator, as services do")
    if connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')")) is None:
        raise MigrationError(f"this database has no {SCHEMA} schema: run `ibex-db upgrade` first")
    if connection.scalar(text(f"SELECT EXISTS (SELECT FROM {SCHEMA}.{SIGNING_KEYS})")):
        raise MigrationError(
            "signing is on, whose policies hold a sub-select, which Citus takes in no policy: `ibex-db sign --disable` "
            "comes first"
        )
    nodes = connection.execute(text("SELECT node_name, node_port FROM citus_get_active_worker_nodes()"))
    workers = [(str(name), int(port)) for name, port in nodes]
    coordinator = connection.scalar(
        text("SELECT bool_or(shouldhaveshards) FROM pg_catalog.pg_dist_node WHERE groupid = 0")
    )
    if coordinator is None:
        raise MigrationError(
            "the coordinator does not know its own address, which foreign keys to organizations need: run SELECT "
            "citus_set_coordinator_host('its host', its port)"
        )
    if coordinator or not workers:
        raise MigrationError(
            "tenants' rows lie on workers alone, for the triggers of a shard read its neighbours: add one with "
            "citus_add_node(), and have the coordinator hold none with citus_set_node_property(host, port, "
            "'shouldhaveshards', false)"
        )
    rows = connection.execute(text(_KINDS), {"schema": SCHEMA}).all()
    names = {"h": "hash", "n": "reference"}
    keys = connection.execute(text(_FOREIGN_KEYS), {"schema": SCHEMA}).all()
    return State(
        found,
        workers,
        {str(table): names.get(str(method), "local") if method is not None else "local" for table, method, _ in rows},
        frozenset(str(table) for table, _, kind in rows if kind == "p"),
        {(str(name), str(table)): (str(parent), str(action)) for name, table, parent, action in keys},
        [(str(login), str(role)) for login, role in connection.execute(text(_LOGINS))],
    )


def on_workers(command: str) -> str:
    """Return the statement that runs a command on every worker."""
    return f"SELECT nodename, nodeport, success, result FROM run_command_on_workers({_QUOTE}{command}{_QUOTE})"


def on_placements(table: str, command: str) -> str:
    """Return the statement that runs a command for every copy of every shard; %s or %1$s stands for its name."""
    return (
        f"SELECT nodename, nodeport, shardid, success, result "
        f"FROM run_command_on_placements('{SCHEMA}.{table}', {_QUOTE}{command}{_QUOTE})"
    )


def everywhere(connection: Connection, query: str) -> Sequence[Any]:
    """Ask every worker for one JSON value.

    Raises:
        MigrationError: one did not answer.
    """
    return [json.loads(answer) for answer in answers(connection, on_workers(query))]


def answers(connection: Connection, statement: str) -> Sequence[str]:
    """Run what on_workers() or on_placements() made, and return what each said.

    Raises:
        MigrationError: one of them failed; what it said.
    """
    rows = connection.exec_driver_sql(statement).all()
    for *where, success, said in rows:
        if not success:
            raise MigrationError(f"on {':'.join(map(str, where))}: {said}")
    return [cast("str", row[-1]) for row in rows]
