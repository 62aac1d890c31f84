"""The live tables, read once and shared by the checks, and the deparser that compares expressions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from sqlalchemy import Connection, MetaData, Row, Table, text
from sqlalchemy.exc import DBAPIError

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution.cluster import is_distributed
from ibex_db_core.guards import Guards
from ibex_db_core.migrations import signing
from ibex_db_core.migrations.runner import steps
from ibex_db_core.migrations.wheels import Revision
from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE, SIGNING_KEYS

__all__ = ["Audit", "LiveTable"]

_BOOKS = {"alembic_version", SIGNING_KEYS}
"""Tables of the owner's alone, which no model maps."""

_TABLES = """
    SELECT c.oid, n.nspname, c.relname, c.relkind = 'p' AS partitioned, c.relispartition,
           pg_get_userbyid(c.relowner) AS owner, c.relrowsecurity, c.relforcerowsecurity,
           c.relpersistence = 'u' AS unlogged, COALESCE(c.reloptions, '{}') AS options,
           (SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition) AS parent,
           (SELECT array_agg(a.attname::text) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
           (SELECT array_agg(a.attname::text) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull) AS required
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = ANY (:schemas) AND c.relkind IN ('r', 'p')
     ORDER BY n.nspname, c.relname
"""


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One table or partition, and what it should be.

    Attributes:
        name: qualified and quoted, as SQL wants it.
        root: the partitioned table that a partition belongs to in the end; of any other table, itself.
        tenant_column: the column that names the organization; None for a table without tenants.
        mapped: the model's table; None where somebody else made it.
    """

    oid: int
    schema: str
    relname: str
    name: str
    owner: str
    partitioned: bool
    partition: bool
    root: int
    rls: bool
    forced: bool
    unlogged: bool
    options: dict[str, str]
    columns: frozenset[str]
    required: frozenset[str]
    tenant_column: str | None
    mapped: Table | None

    @property
    def append_only(self) -> bool:
        """Services may SELECT and INSERT only."""
        return self.mapped is not None and bool(self.mapped.info.get("append_only"))

    @property
    def platform_only(self) -> bool:
        """No tenant has anything to do with it: what the platform keeps of tenants that are gone."""
        return self.mapped is not None and bool(self.mapped.info.get("platform_only"))

    @property
    def guards(self) -> Guards:
        """What the model says of triggers, further policies and storage."""
        found = self.mapped.info.get("guards") if self.mapped is not None else None
        return found if isinstance(found, Guards) else Guards()


@dataclass(frozen=True)
class Audit:
    """One look at one database; what several checks need is read once.

    Attributes:
        connection: of a member of ibex_owner, or of a superuser; inside a transaction.
        metadata: the tables of every installed wheel.
    """

    connection: Connection
    metadata: MetaData

    def rows(self, sql: str, **values: object) -> Sequence[Row[tuple[object, ...]]]:
        """Run a query of the catalog."""
        return self.connection.execute(text(sql), values).all()

    def quote(self, name: str) -> str:
        """Quote an identifier where it needs it; PUBLIC is no identifier."""
        return name if name == "PUBLIC" else self.connection.dialect.identifier_preparer.quote(name)

    def qualified(self, schema: str, name: str) -> str:
        """Return schema.name."""
        return f"{self.quote(schema)}.{self.quote(name)}"

    @cached_property
    def revisions(self) -> list[Revision]:
        """Every revision of the installed wheels, each with whether it is applied."""
        return steps(self.connection)

    @cached_property
    def signed(self) -> bool:
        """Whether tenants must be signed here: the database holds a key."""
        return signing.is_on(self.connection)

    @cached_property
    def distributed(self) -> bool:
        """Whether the tables lie on the workers of a Citus cluster."""
        return is_distributed(self.connection)

    @cached_property
    def schemas(self) -> list[str]:
        """Ours, and those of models that lie elsewhere."""
        return sorted({SCHEMA} | {table.schema for table in self.metadata.tables.values() if table.schema})

    @cached_property
    def privileged(self) -> dict[str, set[str]]:
        """Who may use the schema: both roles of services, and those that a table's guards name."""
        named = {
            role
            for table in self.metadata.tables.values()
            if isinstance(guards := table.info.get("guards"), Guards)
            for role in (*(policy.role for policy in guards.policies), *(grant.role for grant in guards.grants))
        }
        return {role: {"USAGE"} for role in {APP_ROLE, PLATFORM_ROLE} | named}

    @cached_property
    def tables(self) -> dict[int, LiveTable]:
        """Every table and partition of our schemas, but for Alembic's and the signing keys."""
        rows = [row for row in self.rows(_TABLES, schemas=self.schemas) if row.relname not in _BOOKS]
        parents = {cast("int", row.oid): cast("int | None", row.parent) for row in rows}
        names = {cast("int", row.oid): f"{row.nspname}.{row.relname}" for row in rows}

        def root(oid: int) -> int:
            parent = parents.get(oid)
            return oid if parent is None or parent not in parents else root(parent)

        found: dict[int, LiveTable] = {}
        for row in rows:
            top = root(row.oid)
            mapped = self.metadata.tables.get(names[top])
            columns: frozenset[str] = frozenset(row.columns or ())
            if mapped is not None:
                tenant = cast("str | None", mapped.info.get("tenant_column"))
            else:
                tenant = "org_id" if "org_id" in columns else None
            found[row.oid] = LiveTable(
                oid=row.oid,
                schema=row.nspname,
                relname=row.relname,
                name=self.qualified(row.nspname, row.relname),
                owner=row.owner,
                partitioned=row.partitioned,
                partition=row.relispartition,
                root=top,
                rls=row.relrowsecurity,
                forced=row.relforcerowsecurity,
                unlogged=row.unlogged,
                options=dict(option.split("=", 1) for option in row.options),
                columns=columns,
                required=frozenset(row.required or ()),
                tenant_column=tenant,
                mapped=mapped,
            )
        return found

    @cached_property
    def shared(self) -> set[str]:
        """The names of the tables that are both in the models and in the database."""
        return {f"{table.schema}.{table.relname}" for table in self.tables.values() if table.mapped is not None}

    @cached_property
    def tenant_tables(self) -> dict[int, LiveTable]:
        """Those that hold tenants' rows, partitions included."""
        return {oid: table for oid, table in self.tables.items() if table.tenant_column is not None}

    @cached_property
    def secured(self) -> dict[int, LiveTable]:
        """Those that have policies: the tenant tables, and what is the platform's alone."""
        return {oid: table for oid, table in self.tables.items() if oid in self.tenant_tables or table.platform_only}

    @cached_property
    def roots(self) -> dict[int, LiveTable]:
        """Tenant tables as a query names them: no partitions."""
        return {oid: table for oid, table in self.tenant_tables.items() if not table.partition}

    def alike(self, table: LiveTable, pairs: Sequence[tuple[str, str]], *names: str) -> list[bool]:
        """Tell of each pair of expressions whether they say the same.

        Postgres itself parses and deparses both, in one EXPLAIN that runs nothing:
        spelling, casts that it adds and constants that it folds make no difference.

        Args:
            table: whose columns they are about.
            pairs: expressions over them.
            names: what they call its row; none: the table's own name.
        """
        if not pairs:
            return []
        # Of a distributed table EXPLAIN shows a worker's answer, and no expression; of its row type it shows them.
        row = f"unnest(NULL::{table.name}[])" if self.distributed else table.name
        source = ", ".join(f"{row} AS {name}" for name in names or (self.quote(table.relname),))
        try:
            with self.connection.begin_nested():
                output = self._deparsed(source, [expression for pair in pairs for expression in pair])
        except DBAPIError:  # one of them names what is not there: find out which
            if len(pairs) == 1:
                return [False]
            return [same for pair in pairs for same in self.alike(table, [pair], *names)]
        return [output[at] == output[at + 1] for at in range(0, len(output), 2)]

    def _deparsed(self, source: str, expressions: Sequence[str]) -> list[str]:
        targets = ", ".join(f"({expression})" for expression in expressions)
        query = f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT {targets} FROM {source} WHERE false"
        plan = self.connection.exec_driver_sql(query).scalar_one()
        tree = json.loads(plan) if isinstance(plan, str) else plan
        return [str(line) for line in tree[0]["Plan"]["Output"]]
