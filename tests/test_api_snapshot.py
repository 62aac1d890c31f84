"""The public API is written down, and whoever changes it says so to its users."""

import difflib
from pathlib import Path

import pytest
from api_snapshot import FOLDER, public_api, unacknowledged

ROOT = Path(__file__).resolve().parent.parent

NOW = (FOLDER / "now.txt").read_text()


def test_the_public_api_is_what_is_written_down() -> None:
    found = public_api()

    told = "\n".join(difflib.unified_diff(NOW.splitlines(), found.splitlines(), "written down", "installed", n=0))
    assert found == NOW, f"if this is meant: uv run python tools/api_snapshot.py\n{told}"


def test_what_changed_since_the_release_is_in_a_fragment_of_the_changelog() -> None:
    released = (FOLDER / "released.txt").read_text()
    fragments = "\n".join(path.read_text() for path in (ROOT / "changes").glob("*.*.md"))

    left = unacknowledged(released, NOW, fragments)

    assert not left, "name these in backticks in a fragment (changes/README.md):\n" + "\n".join(left)


RELEASED = "# ibex-db-core\nclass Database()\nasync Database.run(org_id: UUID) -> R\n"


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (RELEASED, []),
        (f"{RELEASED}Database.walk()\n", ["Database.walk()"]),
        (
            RELEASED.replace("UUID", "str"),
            ["async Database.run(org_id: UUID) -> R", "async Database.run(org_id: str) -> R"],
        ),
        (RELEASED.replace("class Database()\n", ""), ["class Database()"]),
        (f"{RELEASED}class Other(Database)\n", ["class Other(Database)"]),
    ],
)
def test_a_change_that_no_fragment_names_is_found(now: str, left: list[str]) -> None:
    assert unacknowledged(RELEASED, now, "Something else, with `words` in it. Database is not quoted.") == left


@pytest.mark.parametrize("said", ["`Database` changed.", "`db.run()` and `Database.walk` are new."])
def test_a_fragment_names_the_class_or_the_member(said: str) -> None:
    assert unacknowledged(RELEASED, f"{RELEASED}Database.walk()\n", said) == []


def test_verbs_fields_and_members_are_all_there() -> None:
    lines = NOW.splitlines()

    for beginning in (
        "async Database.run(",
        "async MemoryRepository.search(",  # from a mixin
        "async AgentRepository.get(",  # from BaseRepository
        "Memory.content: Mapped[str]",
        "MemoryCategory.PREFERENCE = 'preference'",
        "EngineSettings.pool_size: int",
        "testing.make_memory(",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning
    assert len(lines) > 500
