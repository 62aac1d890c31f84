"""`ibex-db schema` tells the schema that the migrations make: run as SQL, the doctor finds it sound."""

import json
from uuid import uuid4
from xml.etree import ElementTree as ET

import asyncpg
import pytest
from fresh import fresh
from typer.testing import CliRunner

from ibex_db import Base
from ibex_db_core.cli.app import build
from ibex_db_core.doctor import examine
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.provisioning import Cluster
from ibex_db_core.schema import ddl, entities, svg
from ibex_db_core.schema.ddl import create_foreign_key
from ibex_db_core.url import parse

# What the migrations make beside the tables: partitions, in the number that was asked for, and their own record.
BESIDE = {"partition-missing", "revision-pending"}


async def test_the_statements_make_what_the_migrations_make(ibex_cluster: Cluster) -> None:
    name = f"ibex_schema_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name)
    try:
        address = ibex_cluster.url(name)
        connection = await asyncpg.connect(address.render_as_string(hide_password=False))
        await connection.execute(ddl(Base.metadata))
        await connection.close()
        engine = create_engine(parse(address), EngineSettings())
        async with engine.connect() as live:
            report = await live.run_sync(examine)
        await engine.dispose()
    finally:
        await ibex_cluster.drop_database(name)

    assert [found for found in report.findings if found.code not in BESIDE] == []


def test_who_asks_for_a_foreign_key_leaves_it_in_its_table() -> None:
    rules = [rule for table in Base.metadata.tables.values() for rule in table.foreign_key_constraints]
    before = ddl(Base.metadata)

    asked = [create_foreign_key(rule) for rule in rules]

    assert len(asked) == before.count("FOREIGN KEY") > 0
    assert ddl(Base.metadata) == before


def test_every_table_is_told_with_its_wheel() -> None:
    told = json.loads(CliRunner().invoke(build(), ["schema", "--json"]).stdout)

    wheels = {table["name"]: table["wheel"] for table in told["tables"]}
    assert wheels.keys() == {table.name for table in Base.metadata.tables.values()}
    assert (wheels["agents"], wheels["memories"]) == ("tenancy", "memory")
    assert set(wheels.values()) == {"tenancy", "memory"}


def test_the_same_tables_give_the_same_picture_in_every_process() -> None:
    draw = "from ibex_db import Base; from ibex_db_core.schema import *; print(svg(entities(Base.metadata)))"
    drawn = {fresh(draw, env={"PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}

    assert len(drawn) == 1
    assert drawn == {svg(entities(Base.metadata)) + "\n"}


@pytest.mark.parametrize("remark", ["partitioned", "append-only", "append-only, platform only"])
def test_the_picture_says_what_is_special(remark: str) -> None:
    drawn = ET.fromstring(svg(entities(Base.metadata)))  # noqa: S314 - our own

    assert remark in {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
