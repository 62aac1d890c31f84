"""What a session is after its block, and what a wrong address or a long conflict says."""

from uuid import UUID

import pytest
from sqlalchemy import text
from toys import BotRepository

from ibex_db_core import AccessDeniedError, ConfigurationError, Database, InvalidInputError, TenantError
from ibex_db_core.types import pack_vector


async def test_a_repository_used_after_its_block_is_refused_and_holds_no_connection(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.count()

    with pytest.raises(TenantError, match="ended with its"):
        await bots.count()

    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def test_a_write_in_a_read_only_transaction_names_the_way_out(db: Database, acme: UUID) -> None:
    with pytest.raises(AccessDeniedError, match="read_only=True"):
        async with db.tenant(acme, read_only=True) as session:
            await session.execute(text("UPDATE ibex_core.bots SET rank = rank"))


def test_an_address_that_is_none_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="not None"):
        Database(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_complex_numbers_are_no_vector() -> None:
    numpy = pytest.importorskip("numpy")

    with pytest.raises(InvalidInputError, match="real numbers"):
        pack_vector(numpy.ones(3, dtype=complex))
