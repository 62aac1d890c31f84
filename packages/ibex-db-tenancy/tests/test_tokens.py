"""Plaintext tokens."""

import hashlib
import re
import string
from uuid import UUID, uuid4

import pytest
from hypothesis import assume, example, given, strategies as st

from ibex_db_core.errors import IbexError, InvalidTokenError
from ibex_db_tenancy.tokens import TOKEN_PATTERN, Minted, ParsedToken, matches, mint, parse, token_hash

ALPHANUMERIC = string.digits + string.ascii_letters


@given(st.uuids())
@example(UUID(int=0))
@example(UUID(int=2**128 - 1))
def test_a_minted_token_parses_to_its_organization_and_hash(org_id: UUID) -> None:
    minted = mint(org_id)

    assert parse(minted.plaintext) == ParsedToken(org_id=org_id, hash=minted.hash)


@given(st.uuids())
def test_every_token_has_the_greppable_shape(org_id: UUID) -> None:
    minted = mint(org_id)

    assert re.fullmatch(TOKEN_PATTERN, minted.plaintext)
    assert len(minted.plaintext) == 76


def test_tokens_of_one_organization_differ() -> None:
    org_id = uuid4()

    minted = [mint(org_id) for _ in range(200)]

    assert len({token.plaintext for token in minted}) == 200
    assert len({token.prefix for token in minted}) == 200


def test_the_hash_is_the_sha256_of_the_whole_plaintext() -> None:
    minted = mint(uuid4())

    assert minted.hash == hashlib.sha256(minted.plaintext.encode()).hexdigest() == token_hash(minted.plaintext)


def test_the_prefix_is_the_beginning_and_reveals_eight_digits_of_the_secret() -> None:
    minted = mint(uuid4())

    assert minted.plaintext.startswith(minted.prefix)
    assert len(minted.prefix) == len("ibex_") + 8


def test_the_plaintext_is_left_out_of_the_repr() -> None:
    minted = mint(uuid4())

    assert minted.plaintext not in repr(minted)
    assert minted.prefix in repr(minted)
    assert isinstance(minted, Minted)


@given(at=st.integers(0, 75), char=st.sampled_from(ALPHANUMERIC))
def test_any_one_wrong_character_is_refused(at: int, char: str) -> None:
    plaintext = mint(uuid4()).plaintext
    assume(plaintext[at] != char)

    with pytest.raises(InvalidTokenError):
        parse(plaintext[:at] + char + plaintext[at + 1 :])


@given(at=st.integers(0, 74))
def test_two_swapped_characters_are_refused(at: int) -> None:
    plaintext = mint(uuid4()).plaintext
    assume(plaintext[at] != plaintext[at + 1])

    with pytest.raises(InvalidTokenError):
        parse(plaintext[:at] + plaintext[at + 1] + plaintext[at] + plaintext[at + 2 :])


@given(st.text())
@example("")
@example("ibex_")
@example("ibex_" + "0" * 71)
@example("ibex_" + "\u0660" * 71)
@example("ibex_" + "\ud800" * 71)
@example("ibex_" + "z" * 71)
def test_whatever_else_a_header_holds_is_refused(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse(text)


@pytest.mark.parametrize("value", [None, 7, b"ibex_", ["ibex_"]])
def test_what_is_no_text_is_refused(value: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse(value)


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\n", "Bearer {}"])
def test_nothing_is_trimmed(around: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse(around.format(mint(uuid4()).plaintext))


@pytest.mark.parametrize(
    ("body", "checksum"),
    [("ibex_" + "z" * 43 + "0" * 22, "2WO4kH"), ("ibex_" + "0" * 43 + "z" * 22, "0k7kvo")],
)
def test_a_number_too_large_for_its_part_is_refused_though_its_checksum_is_right(body: str, checksum: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse(body + checksum)


def test_the_error_never_repeats_the_token() -> None:
    plaintext = mint(uuid4()).plaintext[:-1] + "!"

    with pytest.raises(InvalidTokenError) as caught:
        parse(plaintext)

    assert plaintext[5:20] not in str(caught.value)
    assert "not valid" in str(caught.value)
    assert isinstance(caught.value, IbexError)


def test_a_token_matches_its_own_hash_only() -> None:
    minted, other = mint(uuid4()), mint(uuid4())

    assert matches(minted.plaintext, minted.hash)
    assert not matches(minted.plaintext, other.hash)
    assert not matches(minted.plaintext, "\u00e9")
    assert not matches("\ud800", minted.hash)


def test_the_format_is_the_one_that_is_out_there() -> None:
    """A token handed out by the first release stays valid for ever."""
    plaintext = "ibex_dPhkQK1gePJHiCPIUikQopUHR5vRLmEqEaxJQZPudDf02u2hTvGlR3rl1V14RBNbM11Moo2"

    assert parse(plaintext).org_id == UUID("0189f7a2-7d3e-7c4b-9a51-3f2d8e6b1c00")
