"""The declarative base: names that a person can guess, mixins, facts for the policies, a repr without content."""

from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import ForeignKeyConstraint, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable
from toys import Bot, BotRepository, Entry, Org, ToyBase

from ibex_db_core import SCHEMA, Base, Database
from ibex_db_core.base import parent_key
from ibex_db_core.guards import Guards


async def test_constraints_and_indexes_are_named_as_postgres_would(admin: asyncpg.Connection) -> None:
    found = await admin.fetch(
        """
        SELECT conname::text AS name FROM pg_constraint
        WHERE conrelid = ANY(ARRAY['ibex_core.bots', 'ibex_core.notes']::regclass[]) AND contype <> 'n'
        UNION SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indrelid = 'ibex_core.bots'::regclass
        """
    )

    assert {row["name"] for row in found} == {
        "bots_pkey",
        "bots_org_id_fkey",
        "bots_mood_known",
        "bots_rank_not_unlucky",
        "bots_metadata_is_object",
        "bots_slug_live",
        "bots_nickname_live",
        "notes_pkey",
        "notes_org_id_fkey",
        "notes_org_id_bot_id_fkey",
        "notes_org_id_bot_id_number_key",
    }


def test_a_tenants_row_is_identified_by_its_organization_first() -> None:
    assert [column.name for column in Bot.__table__.primary_key] == ["org_id", "id"]
    assert [column.name for column in Bot.__mapper__.primary_key] == ["org_id", "id"]
    assert [column.name for column in Org.__table__.primary_key] == ["id"]


def test_keys_come_first_and_moments_last() -> None:
    names = [column.name for column in Bot.__table__.columns]

    assert names[:2] == ["org_id", "id"]
    assert names[-3:] == ["created_at", "updated_at", "deleted_at"]


def test_the_facts_of_tenancy_are_on_the_table() -> None:
    facts = {table.name: dict(table.info) for table in ToyBase.metadata.sorted_tables}

    assert facts["organizations"] == {"tenant_column": "id", "append_only": False, "guards": Guards()}
    assert facts["bots"] == {"tenant_column": "org_id", "append_only": False, "guards": Guards()}
    assert facts["entries"] == {"tenant_column": "org_id", "append_only": True, "guards": Guards()}


def test_a_metadata_of_ones_own_keeps_its_tables_out_of_the_wheels() -> None:
    assert "ibex_core.bots" in ToyBase.metadata.tables
    assert "ibex_core.bots" not in Base.metadata.tables
    assert Base.metadata.schema == SCHEMA == "ibex_core"


def test_a_child_points_at_its_parent_within_its_organization() -> None:
    kept, loose = parent_key("bots", "bot_id"), parent_key("bots", "bot_id", optional=True)

    assert [element.target_fullname for element in kept.elements] == ["ibex_core.bots.org_id", "ibex_core.bots.id"]
    assert (kept.ondelete, loose.ondelete) == ("CASCADE", "SET NULL (bot_id)")
    for rule in ToyBase.metadata.tables["ibex_core.notes"].constraints:
        if isinstance(rule, ForeignKeyConstraint | UniqueConstraint):
            assert next(iter(rule.columns)).name == "org_id"


def test_a_moment_is_a_timestamptz_and_a_closed_set_a_varchar() -> None:
    ddl = str(CreateTable(Bot.__table__).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call, arg-type]

    assert "created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL" in ddl
    assert "mood VARCHAR(32)" in ddl
    assert "embedding VECTOR(3)" in ddl
    assert "id UUID DEFAULT gen_random_uuid() NOT NULL" in ddl


def test_a_repr_names_the_key_and_never_the_content() -> None:
    ident = uuid4()

    assert repr(Bot(id=ident, slug="robin", nickname="a customer's words")) == f"<Bot {ident}>"
    assert repr(Entry(line="a customer's words")) == "<Entry unsaved>"


async def test_a_row_of_raw_sql_gets_a_key_as_well(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    ident = await admin.fetchval("INSERT INTO ibex_core.bots (org_id, slug) VALUES ($1, 'robin') RETURNING id", acme)

    async with db.tenant(acme) as session:
        assert (await BotRepository(session).get(ident)).slug == "robin"
