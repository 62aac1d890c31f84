"""How the schema differs on Citus, and why.

====================================  =================================================================================
elsewhere                             distributed
====================================  =================================================================================
memories in hash partitions           in one piece: shards do a partition's work, and Citus forgets, of a partition's
                                      shard, how the vector is stored
ON DELETE SET NULL (x_id)             NO ACTION, and a trigger of the parent that sets x_id to NULL: Citus refuses
                                      SET NULL in a key that holds org_id, though x_id alone would be set
triggers that join their transition   the same triggers, whose functions loop over the rows: no distributed query takes
table with another table              a transition table
memories_bm25                         also on the workers, where a search is pushed to, and may ask its own shard there
====================================  =================================================================================
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from sqlalchemy import ForeignKeyConstraint, MetaData, Table

from ibex_db_core.base import SCHEMA
from ibex_db_core.guards import Function, Guards, Trigger
from ibex_db_core.policies import tenant_tables, trigger
from ibex_db_core.schema.ddl import create_foreign_key

REFERENCE = "organizations"

# Before the trigger of the foreign key itself, RI_...: AFTER triggers fire by name.
_UNLINK = '"A_unlink"'


def distributed(metadata: MetaData) -> Sequence[Table]:
    """Return the tables to distribute by org_id, parents first."""
    return [table for table in tenant_tables(metadata) if table.info["tenant_column"] == "org_id"]


def foreign_keys(metadata: MetaData) -> Mapping[tuple[str, str], str]:
    """Return the statement of every foreign key, by name and table."""
    return {(_name(rule), table.name): _statement(rule) for table in distributed(metadata) for rule in _rules(table)}


def functions(metadata: MetaData) -> Sequence[Function]:
    """Return the functions that differ, and those that unlink."""
    guards = [cast("Guards", table.info["guards"]) for table in metadata.sorted_tables]
    return [function for one in guards for function in one.sharded] + [unlink for unlink, _ in _unlinks(metadata)]


def triggers(metadata: MetaData) -> Sequence[tuple[str, Trigger]]:
    """Return the triggers that are added, each with its table."""
    return [(table, trigger) for _, (table, trigger) in _unlinks(metadata)]


def own_triggers(table: Table) -> Sequence[Trigger]:
    """Return the triggers that a table has on any machine."""
    own = trigger(
        table.name,
        append_only=bool(table.info["append_only"]),
        touched="updated_at" in table.columns,
        tenant_column=str(table.info["tenant_column"]),
    )
    return [own, *cast("Guards", table.info["guards"]).triggers]


def _unlinks(metadata: MetaData) -> Sequence[tuple[Function, tuple[str, Trigger]]]:
    children: defaultdict[str, list[str]] = defaultdict(list)
    for table in distributed(metadata):
        for rule in _rules(table):
            if (rule.ondelete or "").startswith("SET NULL"):
                column = next(one.parent.name for one in rule.elements if one.parent.name != "org_id")
                children[rule.referred_table.name].append(
                    f"    UPDATE {SCHEMA}.{table.name} SET {column} = NULL "
                    f"WHERE org_id = OLD.org_id AND {column} = OLD.id;\n"
                )
    return [
        (
            Function(f"{parent}_unlink", f"\nBEGIN\n{''.join(updates)}    RETURN NULL;\nEND "),
            (
                parent,
                Trigger(
                    _UNLINK,
                    f"AFTER DELETE ON {SCHEMA}.{parent} FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.{parent}_unlink()",
                ),
            ),
        )
        for parent, updates in children.items()
    ]


def _rules(table: Table) -> Sequence[ForeignKeyConstraint]:
    return sorted(table.foreign_key_constraints, key=_name)


def _name(rule: ForeignKeyConstraint) -> str:
    return str(rule.name) if isinstance(rule.name, str) else _conventional(rule)


def _conventional(rule: ForeignKeyConstraint) -> str:
    return "_".join((rule.table.name, *(element.parent.name for element in rule.elements), "fkey"))


def _statement(rule: ForeignKeyConstraint) -> str:
    return create_foreign_key(rule).partition(" ON DELETE SET NULL")[0]


def on_worker(function: Function) -> Function:
    """Return a definer's function as it is on a worker: it may ask the shard beside the query that calls it.

    Citus lets no query on a shard ask another table, for a shard may move.  This one asks with the organization of the
    transaction, whose rows are here, or the query that calls it would not be.  It plans anew each time: what a plan
    that is kept costs on shards, nobody has measured.
    """
    here = {"plan_cache_mode": "force_custom_plan", "citus.allow_nested_distributed_execution": "on"}
    return replace(function, settings={**function.settings, **here})
