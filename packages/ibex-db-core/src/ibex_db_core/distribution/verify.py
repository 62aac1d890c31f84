"""Whether every shard is as closed as its table: policies, row-level security, grants and triggers, on every node."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Connection, MetaData, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution import cluster, profile

# Names of a shard's triggers and constraints end in its number, before which long ones are cut short.
_OF_A_TABLE = """SELECT json_build_object(
    'row-level security', c.relrowsecurity, 'forced', c.relforcerowsecurity,
    'policies', ARRAY(SELECT p.polname || ' ' || p.polcmd::text || ' ' || p.polpermissive::text || ' '
        || ARRAY(SELECT r.rolname::text FROM pg_roles r WHERE r.oid = ANY (p.polroles) ORDER BY 1)::text
        || coalesce(pg_get_expr(p.polqual, p.polrelid), '') || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
        FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1),
    'grants', ARRAY(SELECT a.grantee::regrole::text || ' ' || a.privilege_type FROM aclexplode(c.relacl) a ORDER BY 1),
    'grants of columns', ARRAY(SELECT f.attname || ' ' || a.grantee::regrole::text || ' ' || a.privilege_type
        FROM pg_attribute f, aclexplode(f.attacl) a WHERE f.attrelid = c.oid ORDER BY 1),
    'storage', ARRAY(SELECT f.attname || ' ' || f.attstorage::text FROM pg_attribute f WHERE f.attrelid = c.oid
        AND f.attnum > 0 AND NOT f.attisdropped ORDER BY 1),
    'options', coalesce(c.reloptions, '{}'),
    'triggers', ARRAY(SELECT regexp_replace(t.tgname, '_[0-9]{6,}$', '') || ' ' || t.tgenabled::text
        || CASE t.tgfoid WHEN 0 THEN '' ELSE t.tgfoid::regproc::text END FROM pg_trigger t
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND NOT starts_with(t.tgname, 'truncate_trigger') ORDER BY 1),
    'rules', ARRAY(SELECT k.contype::text || ' ' || left(regexp_replace(k.conname, '_[0-9]{6,}$', ''), 40)
        FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype IN ('c', 'f', 'p', 'u') AND k.convalidated ORDER BY 1)
)::text FROM pg_class c WHERE c.oid = """


_OPENING = frozenset({"row-level security", "forced", "policies", "grants", "grants of columns"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which one copy of one shard is not as its table is.

    Attributes:
        shard: its name on its node.
        node: host and port.
        what: row-level security, forced, policies, grants, ...; None: nobody could look, and ``said`` is why.
        said: what is there in place of what should be.
    """

    table: str
    shard: str
    node: str
    what: str | None
    said: str

    @property
    def opens(self) -> bool:
        """Whether it is what keeps organizations apart that is another there."""
        return self.what is None or self.what in _OPENING

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.shard}: {self.what}: {self.said}" if self.what else f"{self.shard} on {self.node}: {self.said}"


def differences(connection: Connection, models: MetaData) -> Sequence[Difference]:
    """Say in what each copy of each shard differs from its table; nothing where all are as they should be."""
    return [
        found
        for table in (profile.REFERENCE, *(table.name for table in profile.distributed(models)))
        for found in _of_table(connection, table)
    ]


def complaints(connection: Connection, models: MetaData) -> Sequence[str]:
    """Say the same in lines."""
    return [str(found) for found in differences(connection, models)]


def _of_table(connection: Connection, table: str) -> Iterator[Difference]:
    own = connection.scalar(text(f"{_OF_A_TABLE} to_regclass(:table)"), {"table": f"{SCHEMA}.{table}"})
    wanted = json.loads(str(own))
    looked = connection.exec_driver_sql(cluster.on_placements(table, f"{_OF_A_TABLE}'%s'::regclass"))
    for host, port, number, success, said in looked:
        shard, node = f"{table}_{number}", f"{host}:{port}"
        if not success:
            yield Difference(table, shard, node, None, said)
            continue
        found = json.loads(said)
        for what, value in wanted.items():
            if found[what] != value:
                yield Difference(table, shard, node, what, _difference(value, found[what]))


def _difference(wanted: object, found: object) -> str:
    if isinstance(wanted, list) and isinstance(found, list):
        should, does = set(cast("list[str]", wanted)), set(cast("list[str]", found))
        lacks, has = sorted(should - does), sorted(does - should)
        return f"lacks {lacks}" * bool(lacks) + f" has {has}" * bool(has)
    return f"{found}, not {wanted}"
