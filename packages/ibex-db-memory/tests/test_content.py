"""The normal form of content, and its hash."""

import sys
import unicodedata
from hashlib import sha256

import pytest
from hypothesis import given, strategies as st

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import MAX_TAG_LENGTH, content_hash, normalise, normalise_tag


@given(st.text())
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_the_normal_form_of_every_character_is_its_own_normal_form() -> None:
    for code in range(sys.maxunicode + 1):
        for text in (chr(code), f"a{chr(code)}\u0301"):
            once = normalise(text)

            assert normalise(once) == once, hex(code)


@given(st.text())
def test_canonically_equivalent_texts_have_one_hash(text: str) -> None:
    assert content_hash(unicodedata.normalize("NFD", text)) == content_hash(text)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_takes_a_short_way_to_the_same_form(text: str) -> None:
    assert normalise(text) == " ".join(unicodedata.normalize("NFC", text.casefold()).split())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Prefers  tea\n over coffee. ", "prefers tea over coffee."),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "CAFÉ"),
        ("a\u00a0b\u2003c", "a b c"),
    ],
)
def test_case_white_space_and_composition_make_no_difference(one: str, other: str) -> None:
    assert content_hash(one) == content_hash(other)


def test_words_make_a_difference() -> None:
    assert content_hash("Prefers tea.") != content_hash("Prefers coffee.")


def test_the_hash_is_the_sha256_of_the_normal_form_in_hexadecimal() -> None:
    assert content_hash(" Tea ") == sha256(b"tea").hexdigest()


def test_a_tag_is_stored_in_its_normal_form() -> None:
    assert normalise_tag("  Hot \t Drinks ") == "hot drinks"


@pytest.mark.parametrize("tag", ["", " \n ", "x" * (MAX_TAG_LENGTH + 1), "a\x00b", "\ud800", None, 3])
def test_a_tag_that_is_blank_long_or_no_text_is_refused(tag: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        normalise_tag(tag)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert caught.value.field == "tag"
