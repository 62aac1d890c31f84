"""What can be said of a distributed schema without a cluster: what it differs in, and who is turned away."""

import asyncpg
import pytest

from ibex_db import (
    Base,
    ConflictError,
    Database,
    DatabaseError,
    ForeignKeyError,
    InvalidInputError,
    MigrationError,
    Organization,
    RuleViolationError,
)
from ibex_db_core.distribution import profile
from ibex_db_core.sharding import is_sharded, set_local
from ibex_db_core.translation import translate


async def test_a_database_without_citus_is_told_what_to_do(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        with pytest.raises(MigrationError, match=r"no citus extension.*citus_add_node"):
            await migrator.distribution()


@pytest.mark.parametrize("shards", [0, 1025])
async def test_an_impossible_number_of_shards_is_refused_before_anything_is_asked(
    ibex_db: Database, shards: int
) -> None:
    async with ibex_db.migrator() as migrator:
        with pytest.raises(InvalidInputError, match="shards"):
            await migrator.distribution(shards=shards)


async def test_a_database_on_one_machine_is_not_taken_for_a_distributed_one(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="a test") as session:
        session.add(Organization(name="Acme", slug="acme"))

    assert not is_sharded(ibex_db.engine)


def test_no_foreign_key_sets_null_and_each_that_did_has_its_line_in_a_trigger() -> None:
    said = profile.foreign_keys(Base.metadata)
    optional = [
        (
            rule.referred_table.name,
            rule.table.name,
            next(c.name for c in rule.columns if c.name != "org_id"),
        )
        for table in profile.distributed(Base.metadata)
        for rule in table.foreign_key_constraints
        if (rule.ondelete or "").startswith("SET NULL")
    ]
    unlinks = {one.name: one.body for one in profile.functions(Base.metadata) if one.name.endswith("_unlink")}

    assert len(optional) > 8
    assert not any("SET NULL" in statement for statement in said.values())
    for parent, child, column in optional:
        assert f"UPDATE ibex_core.{child} SET {column} = NULL WHERE org_id = OLD.org_id" in unlinks[f"{parent}_unlink"]
    assert {table for table, _ in profile.triggers(Base.metadata)} == {parent for parent, _, _ in optional}


def test_every_function_of_shards_stands_for_one_that_is_there() -> None:
    for table in Base.metadata.tables.values():
        guards = table.info["guards"]
        there = {(one.name, one.arguments, one.result, one.definer) for one in guards.functions}

        assert {(one.name, one.arguments, one.result, one.definer) for one in guards.sharded} <= there


def test_parents_are_distributed_before_their_children() -> None:
    seen = {profile.REFERENCE}
    for table in profile.distributed(Base.metadata):
        parents = {rule.referred_table.name for rule in table.foreign_key_constraints} - {table.name}
        assert parents <= seen
        seen.add(table.name)


def test_a_setting_is_a_literal_that_nothing_gets_out_of() -> None:
    assert set_local("app.change_reason", "it's '; DROP TABLE x; --") == (
        "SET LOCAL app.change_reason = 'it''s ''; DROP TABLE x; --'"
    )


@pytest.mark.parametrize(
    ("driver", "message", "kind", "constraint", "table"),
    [
        (
            asyncpg.UniqueViolationError,
            'duplicate key value violates unique constraint "agents_org_id_slug_live_102040"',
            ConflictError,
            "agents_org_id_slug_live",
            "agents",
        ),
        (
            asyncpg.UniqueViolationError,
            'duplicate key value violates unique constraint "directive_versions_org_id_directive_id_version__c67fe06a_102033"',  # noqa: E501 - as Citus says it
            ConflictError,
            "directive_versions_org_id_directive_id_version_number_key",
            "directive_versions",
        ),
        (
            asyncpg.ForeignKeyViolationError,
            'insert or update on table "memories_102053" violates foreign key constraint "memories_org_id_agent_id_fkey_102053"',  # noqa: E501 - as Citus says it
            ForeignKeyError,
            "memories_org_id_agent_id_fkey",
            "memories",
        ),
        (
            asyncpg.CheckViolationError,
            'new row for relation "memory_tags_102125" violates check constraint "memory_tags_tag_length_102125"',
            RuleViolationError,
            "memory_tags_tag_length",
            "memory_tags",
        ),
    ],
)
def test_a_rule_of_a_shard_is_told_by_the_name_that_it_has_on_the_table(
    driver: type[asyncpg.PostgresError], message: str, kind: type[DatabaseError], constraint: str, table: str
) -> None:
    told = translate(driver(message))

    assert isinstance(told, kind)
    assert (getattr(told, "constraint", None), getattr(told, "table", None)) == (constraint, table)
    assert "_10" not in str(told)
