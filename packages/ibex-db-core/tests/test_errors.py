"""The tree of errors: one root, facts as attributes, messages that help, whole after a trip between processes."""

import pickle
from uuid import UUID

import pytest

from ibex_db_core import errors
from ibex_db_core.errors import (
    CommitUnknownError,
    ConflictError,
    DatabaseError,
    DestructiveMigrationError,
    IbexError,
    IllegalTransitionError,
    InvalidInputError,
    NotFoundError,
    NotLoadedError,
    TenantMismatchError,
    TenantMissingError,
    TransientError,
    UnsafeRoleError,
)

ACME = UUID("00000000-0000-4000-8000-00000000000a")
GLOBEX = UUID("00000000-0000-4000-8000-00000000000b")

EXAMPLES: dict[str, IbexError] = {
    "DestructiveMigrationError": DestructiveMigrationError(["memory_0004: 12 rows of memory_vectors"]),
    "UnsafeRoleError": UnsafeRoleError("postgres", "is a superuser"),
    "TenantMismatchError": TenantMismatchError(ACME, GLOBEX, "Bot"),
    "InvalidInputError": InvalidInputError("rank", 101, "must lie in [-100, 100]", index=3),
    "NotFoundError": NotFoundError("Bot", ACME),
    "NotLoadedError": NotLoadedError("Bot", "owner", "read it with options=[selectinload(Bot.owner)]"),
    "IllegalTransitionError": IllegalTransitionError("memory 1", "archived", "superseded", "restore it first"),
    "ConflictError": ConflictError(
        "taken", constraint="bots_slug_live", table="bots", values={"slug": "robin"}, sqlstate="23505"
    ),
}
CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_its_facts(kind: type[IbexError]) -> None:
    error = EXAMPLES.get(kind.__name__) or kind("a message")

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__


@pytest.mark.parametrize(
    ("value", "shown"),
    [("I live in Oslo.", "text of 15 characters"), ([0.25] * 384, "list of 384"), (7, "int"), (None, "None")],
)
def test_what_users_said_is_in_no_message(value: object, shown: str) -> None:
    error = InvalidInputError("content", value, "must be something else")

    assert str(error) == f"content must be something else; got {shown}"
    assert error.value is value
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


def test_bad_input_survives_pickling_even_where_its_value_cannot() -> None:
    error = InvalidInputError("extras", {"when": (number for number in [1])}, "must be serialisable as JSON")

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert str(copy) == str(error)
    assert (copy.field, copy.rule) == ("extras", "must be serialisable as JSON")
    assert "generator" in str(copy.value)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_is_drawn_in_the_tree(kind: type[IbexError]) -> None:
    assert issubclass(kind, IbexError)
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", [k for k in CLASSES if k.__name__ not in EXAMPLES], ids=lambda kind: kind.__name__)
def test_an_error_without_a_message_says_what_its_class_promises(kind: type[IbexError]) -> None:
    assert str(kind()) == (kind.__doc__ or "").splitlines()[0]


def test_bad_input_is_a_value_error_and_a_missing_row_a_lookup_error() -> None:
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(NotFoundError, LookupError)


def test_an_unknown_commit_is_not_among_what_may_be_tried_again() -> None:
    assert not issubclass(CommitUnknownError, TransientError)


def test_bad_input_names_field_rule_value_and_place() -> None:
    error = InvalidInputError("rank", 101, "must lie in [-100, 100]", index=3)

    assert (error.field, error.value, error.rule, error.index) == ("rank", 101, "must lie in [-100, 100]", 3)
    assert str(error) == "item 3: rank must lie in [-100, 100]; got 101"


def test_a_long_value_is_cut_in_the_message_and_whole_in_the_attribute() -> None:
    error = InvalidInputError("slug", "x" * 10_000, "must have at most 32 characters")

    assert len(str(error)) < 200
    assert error.value == "x" * 10_000


def test_a_value_that_cannot_be_shown_does_not_hide_the_error() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "Shy" in str(InvalidInputError("rank", Shy(), "must be a whole number"))
    assert "int" in str(InvalidInputError("rank", 10**5000, "must lie in [-100, 100]"))


def test_a_refused_role_says_why_and_what_to_do() -> None:
    error = UnsafeRoleError("postgres", "is a superuser")

    assert (error.role, error.why) == ("postgres", "is a superuser")
    assert "GRANT ibex_app" in str(error)
    assert "step_down=True" in str(error)


def test_a_mismatch_names_both_organizations() -> None:
    error = TenantMismatchError(ACME, GLOBEX, "Bot")

    assert (error.expected, error.got, error.what) == (ACME, GLOBEX, "Bot")
    assert str(ACME) in str(error)
    assert str(GLOBEX) in str(error)


def test_a_missing_tenant_says_what_to_do() -> None:
    assert "db.tenant(org_id)" in str(TenantMissingError())


def test_the_servers_facts_are_attributes() -> None:
    error = DatabaseError("no", constraint="c", table="t", values={"a": 1}, sqlstate="XX000")

    assert (error.constraint, error.table, error.values, error.sqlstate) == ("c", "t", {"a": 1}, "XX000")
