"""The tables as a diagram and as SQL: what is in them, and that a person can read the picture."""

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest
from toys import ToyBase
from typer.testing import CliRunner

from ibex_db_core.cli.app import build
from ibex_db_core.schema import Entity, ddl, entities, mermaid, svg
from ibex_db_core.schema.layout import Box, Layout, Line, place

SVG = "{http://www.w3.org/2000/svg}"

TOYS = entities(ToyBase.metadata)


def toy(name: str) -> Entity:
    return next(entity for entity in TOYS if entity.name == name)


def test_parents_come_before_their_children_and_else_the_alphabet_rules() -> None:
    names = [entity.name for entity in TOYS]

    assert names == ["organizations", "bots", "entries", "notes"]


def test_a_column_tells_its_type_its_key_and_whether_it_may_be_null() -> None:
    told = {attribute.name: attribute for attribute in toy("bots").attributes}

    assert (told["org_id"].primary, told["org_id"].parent) == (True, "organizations")
    assert (told["score"].type, told["created_at"].type) == ("numeric(4,3)", "timestamptz")
    assert (told["nickname"].nullable, told["slug"].nullable) == (True, False)


def test_the_key_to_organizations_is_drawn_where_it_is_the_only_one() -> None:
    assert [(link.parent, link.column) for link in toy("bots").links] == [("organizations", "org_id")]
    assert [(link.parent, link.column) for link in toy("notes").links] == [("bots", "bot_id")]


def test_mermaid_names_every_table_column_and_link() -> None:
    said = mermaid(TOYS)

    assert said.startswith("erDiagram\n")
    assert '    bots ||--o{ notes : "bot_id"\n' in said
    for entity in TOYS:
        block = said.partition(f"    {entity.name} {{\n")[2].partition("    }\n")[0]
        assert [line.split()[1] for line in block.splitlines()] == [one.name for one in entity.attributes]
    # Its grammar: type and name without blanks or commas, keys, and a remark in quotes.
    for line in re.findall(r"^ {8}(.+)$", said, re.MULTILINE):
        assert re.fullmatch(r'[A-Za-z][\w()-]* \w+( (PK|FK|PK, FK))?( "[\w ]+")?', line), line


def test_the_picture_is_sound_xml_with_every_name_in_it_and_asks_nobody_for_anything() -> None:
    drawn = svg(TOYS)
    texts = {"".join(text.itertext()) for text in ET.fromstring(drawn).iter(f"{SVG}text")}  # noqa: S314 - our own

    for entity in TOYS:
        assert entity.name in texts
        assert {one.name + ("?" if one.nullable else "") for one in entity.attributes} <= texts
    assert re.findall(r"https?://[^\"]+", drawn) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|@import|url\(|href", drawn)


def test_ddl_makes_each_table_with_its_policies_and_triggers() -> None:
    said = ddl(ToyBase.metadata)

    assert said.index("CREATE TABLE ibex_core.bots") < said.index("CREATE TABLE ibex_core.notes")
    for name in ("bots", "notes"):
        assert f"ALTER TABLE ibex_core.{name} FORCE ROW LEVEL SECURITY;" in said
        assert f"CREATE POLICY {name}_floor ON ibex_core.{name} AS RESTRICTIVE" in said
        assert f"CREATE TRIGGER {name}_before_update" in said
    assert "CREATE UNIQUE INDEX bots_slug_live" in said


# -- where things stand

PARENTS = {"b": "a", "c": "a", "d": "b c", "e": "d a", "f": "e a b", "g": "a c e f"}
LINES = [Line(f"{parent}{child}", parent, child) for child, parents in PARENTS.items() for parent in parents.split()]
BOXES = [Box(name, 60 + 40 * number, 50 + 30 * (number % 3)) for number, name in enumerate("abcdefgh")]


@pytest.fixture
def placed() -> Layout:
    return place(BOXES, LINES)


def test_no_box_lies_on_another_and_all_are_inside(placed: Layout) -> None:
    for one, other in combinations(placed.boxes.values(), 2):
        apart = (
            one.x + one.width <= other.x
            or other.x + other.width <= one.x
            or one.y + one.height <= other.y
            or other.y + other.height <= one.y
        )
        assert apart, (one, other)
    for box in placed.boxes.values():
        assert box.x >= -0.01
        assert box.x + box.width <= placed.width + 0.01
        assert box.y >= 0
        assert box.y + box.height <= placed.height


def test_a_line_leaves_the_bottom_of_its_parent_and_reaches_the_top_of_its_child(placed: Layout) -> None:
    for line in placed.lines:
        parent, child = placed.boxes[line.parent], placed.boxes[line.child]
        (start, leaves), *_, (end, arrives) = line.points

        assert (leaves, arrives) == (parent.y + parent.height, child.y)
        assert parent.x < start < parent.x + parent.width
        assert child.x < end < child.x + child.width


def test_a_line_runs_straight_and_through_no_box(placed: Layout) -> None:
    for line in placed.lines:
        for (x, y), (to_x, to_y) in pairwise(line.points):
            assert x == to_x or y == to_y, line
            for box in placed.boxes.values():
                inside_x = box.x < max(x, to_x) and min(x, to_x) < box.x + box.width
                inside_y = box.y < max(y, to_y) and min(y, to_y) < box.y + box.height
                assert not (inside_x and inside_y), (line, box)


def test_no_line_runs_along_another(placed: Layout) -> None:
    level = [
        (y, min(x, to_x), max(x, to_x))
        for line in placed.lines
        for (x, y), (to_x, to_y) in pairwise(line.points)
        if y == to_y
    ]

    for one, other in combinations(level, 2):
        assert one[0] != other[0] or one[2] < other[1] or other[2] < one[1], (one, other)


# -- the command


def test_the_command_prints_what_it_is_asked_for_and_writes_it_where_told(tmp_path: object) -> None:
    for kind, begins in (("mermaid", "erDiagram"), ("svg", "<svg "), ("ddl", "-- Schema ibex_core")):
        file = f"{tmp_path}/schema.{kind}"
        printed = CliRunner().invoke(build(), ["schema", "--format", kind])
        written = CliRunner().invoke(build(), ["schema", "--format", kind, "--output", file])

        assert (printed.exit_code, written.exit_code) == (0, 0), printed.output + written.output
        assert printed.stdout.startswith(begins)
        with open(file, encoding="utf-8") as made:  # noqa: PTH123 - one line
            assert made.read().strip() == printed.stdout.strip()


def test_a_file_that_cannot_be_written_is_refused_with_a_way_out(tmp_path: object) -> None:
    refused = CliRunner().invoke(build(), ["schema", "--output", f"{tmp_path}/nowhere/schema.svg"])

    assert refused.exit_code == 3
    assert "name a file in a folder that exists" in refused.stderr
