"""The steps of a move to another embedding model, each inside one transaction (ibex_db_memory.reembedding)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

import pgvector
from sqlalchemy import ARRAY, Float, Integer, Text, Uuid, bindparam, delete, select, text
from sqlalchemy.types import NullType

from ibex_db_core.errors import IllegalTransitionError, InvalidInputError, NotFoundError
from ibex_db_memory.models import EMBEDDING_DIMENSIONS, EmbeddingSpace, SpaceStatus
from ibex_db_memory.repositories.memory import statements
from ibex_db_memory.repositories.memory.spaces import Spaces
from ibex_db_tenancy import Organization
from ibex_db_tenancy.erasure import lock_number


class Claim(NamedTuple):
    """One memory that this worker embeds: its id, its content and the hash of that."""

    id: UUID
    content: str
    content_hash: str


# Steps of one organization's move come one after another; searches and writers do not meet it.
_TURN = text("SELECT pg_advisory_xact_lock(:number)")

# Workers put vectors beside one another, and whoever changes the space waits for them.
_HOLD_SPACE = text(
    "SELECT status FROM ibex_core.embedding_spaces WHERE org_id = :org_id AND id = :space_id FOR SHARE"
).bindparams(bindparam("org_id", type_=Uuid()), bindparam("space_id", type_=Uuid()))

# Whoever writes a memory holds KEY SHARE on the organization until it commits: for its foreign key.
_ALONE = "SELECT FROM ibex_core.organizations WHERE id = :org_id FOR UPDATE"

_EXISTS = "SELECT 1 FROM ibex_core.organizations WHERE id = :org_id"

_HAS_ANY = """(m.embedding IS NOT NULL OR EXISTS (SELECT FROM ibex_core.memory_vectors o
    WHERE o.org_id = :org_id AND o.id = m.id))"""
_LACKS = {
    True: "m.embedding IS NULL",
    False: """NOT EXISTS (SELECT FROM ibex_core.memory_vectors v WHERE v.org_id = :org_id AND v.space_id = :space_id
        AND v.id = m.id AND v.content_hash = m.content_hash AND v.embedding IS NOT NULL)""",
}
_LACKING = {
    at_home: f"SELECT count(*) FROM ibex_core.memories m WHERE m.org_id = :org_id AND {lacks} AND {_HAS_ANY}"
    for at_home, lacks in _LACKS.items()
}
_FILLED = {
    True: "SELECT count(*) FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.embedding IS NOT NULL",
    False: """SELECT count(*) FROM ibex_core.memory_vectors v JOIN ibex_core.memories m
        ON m.org_id = v.org_id AND m.id = v.id AND m.content_hash = v.content_hash
        WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.embedding IS NOT NULL""",
}
# In the order of the ids, from where this worker was last: the filled ones behind it are not read again.
_CLAIM = {
    at_home: f"""
    WITH wanted AS MATERIALIZED (
        SELECT m.id, m.content, m.content_hash FROM ibex_core.memories m
        WHERE m.org_id = :org_id AND m.id > :after AND {lacks} AND {_HAS_ANY}
            AND NOT EXISTS (SELECT FROM ibex_core.memory_vectors c WHERE c.org_id = :org_id AND c.space_id = :space_id
                AND c.id = m.id AND c.claimed_until > clock_timestamp())
        ORDER BY m.id LIMIT :size
    ), claimed AS (
        INSERT INTO ibex_core.memory_vectors AS v (org_id, space_id, id, content_hash, dimensions, claimed_until)
        SELECT :org_id, :space_id, w.id, w.content_hash, :dimensions,
            clock_timestamp() + make_interval(secs => :lease)
        FROM wanted w
        ON CONFLICT (org_id, space_id, id) DO UPDATE
            SET content_hash = excluded.content_hash, embedding = NULL, claimed_until = excluded.claimed_until
            -- Whoever had claimed it before may have put its vector while we waited for the row.
            WHERE v.embedding IS NULL OR v.content_hash <> excluded.content_hash
        RETURNING v.id
    )
    SELECT id, content, content_hash FROM wanted JOIN claimed USING (id) ORDER BY id
    """
    for at_home, lacks in _LACKS.items()
}
_INPUT = """unnest(CAST(:ids AS uuid[]), CAST(:hashes AS text[]), CAST(:vectors AS vector[]))
    AS i (id, content_hash, embedding)"""
_PUT = {
    # A claim that was taken over, or whose memory says something else by now, is not ours to fulfil.
    False: f"""
    UPDATE ibex_core.memory_vectors v SET embedding = i.embedding, claimed_until = NULL FROM {_INPUT}
    WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.id = i.id AND v.content_hash = i.content_hash
        AND v.embedding IS NULL
    RETURNING v.id
    """,
    True: f"""
    WITH claims AS (
        DELETE FROM ibex_core.memory_vectors v USING {_INPUT}
        WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.id = i.id AND v.embedding IS NULL
    )
    UPDATE ibex_core.memories m SET embedding = i.embedding, embedding_model = :model FROM {_INPUT}
    WHERE m.org_id = :org_id AND m.id = i.id AND m.content_hash = i.content_hash AND m.embedding IS NULL
    RETURNING m.id
    """,
}
_GIVE_BACK = """DELETE FROM ibex_core.memory_vectors v
    WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.id = ANY(:ids) AND v.embedding IS NULL"""
_CLEAR = {
    False: """
    DELETE FROM ibex_core.memory_vectors v USING (SELECT o.id FROM ibex_core.memory_vectors o
        WHERE o.org_id = :org_id AND o.space_id = :space_id LIMIT :size) AS batch
    WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.id = batch.id
    RETURNING v.id
    """,
    # Also the name of the model: what is left of the memory's own is the active one's.
    True: """
    WITH batch AS (
        SELECT m.id FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.embedding IS NOT NULL
        ORDER BY m.id LIMIT :size FOR NO KEY UPDATE
    )
    UPDATE ibex_core.memories m SET embedding = NULL, embedding_model = :model FROM batch
    WHERE m.org_id = :org_id AND m.id = batch.id
    RETURNING m.id
    """,
}
_COMMONEST = """SELECT mode() WITHIN GROUP (ORDER BY m.embedding_model) FROM ibex_core.memories m
    WHERE m.org_id = :org_id AND m.embedding IS NOT NULL"""
_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("org_id", "space_id", "after"), Uuid()),
    **dict.fromkeys(("size", "dimensions"), Integer()),
    **dict.fromkeys(("hashes", "vectors"), NullType()),
    "lease": Float(),
    "model": Text(),
    "ids": ARRAY(Uuid()),
}
_FIRST = UUID(int=0)


class Mover(Spaces):
    """The steps of one organization's move."""

    async def spaces(self, *, lock: bool = False) -> Mapping[SpaceStatus, EmbeddingSpace]:
        """Return the organization's spaces; none where it never moved.

        Args:
            lock: wait for whoever is putting vectors into one, and take the turn first.

        Raises:
            NotFoundError: no such organization.
        """
        statement = select(EmbeddingSpace).where(EmbeddingSpace.org_id == self._tenant).order_by(EmbeddingSpace.id)
        if lock:
            await self._turn()
            statement = statement.with_for_update()
        rows = cast(
            "Sequence[EmbeddingSpace]", (await self._execute(statement, populate_existing=True)).scalars().all()
        )
        if not rows and (await self._run(_EXISTS)).scalar_one_or_none() is None:
            raise NotFoundError(Organization.__name__, self._tenant)
        return {row.status: row for row in rows}

    async def begin(self, model: str | None, dimensions: int) -> EmbeddingSpace:
        """Return the space to fill: the one of this model, a new one where there is none.

        Raises:
            IllegalTransitionError: another move is under way, or not finished.
        """
        await self._turn()
        spaces = await self.spaces()
        for space in spaces.values():
            if (space.embedding_model, space.dimensions) == (model, dimensions):
                if space.status is SpaceStatus.CLEARING:
                    raise _over(space)
                return space
        if model is None:
            raise InvalidInputError("embedding_model", None, "must name the model to move to")
        if len(spaces) > 1:
            other = next(space for status, space in spaces.items() if status is not SpaceStatus.ACTIVE)
            way_out = "cut_over() and finish(), or roll_back()" if other.status is SpaceStatus.FILLING else "finish()"
            raise IllegalTransitionError(
                f"embedding model {other.embedding_model}", other.status.value, f"second to {model}", f"{way_out} first"
            )
        if not spaces:
            home = EmbeddingSpace(
                org_id=self._tenant,
                embedding_model=(await self._run(_COMMONEST)).scalar_one(),
                dimensions=EMBEDDING_DIMENSIONS,
                status=SpaceStatus.ACTIVE,
                in_memories=True,
            )
            if (home.embedding_model, home.dimensions) == (model, dimensions):
                raise IllegalTransitionError(f"embedding model {model}", "active already", "filled", "name another")
            self._session.add(home)
        space = EmbeddingSpace(
            org_id=self._tenant,
            embedding_model=model,
            dimensions=dimensions,
            status=SpaceStatus.FILLING,
            in_memories=False,
        )
        self._session.add(space)
        await self._flush()
        return space

    async def lacking(self, space: EmbeddingSpace) -> int:
        """Count the memories that have, or had, a vector of some model, and lack this one's."""
        return cast("int", (await self._run(_LACKING[space.in_memories], space)).scalar_one())

    async def filled(self, space: EmbeddingSpace | None) -> int:
        """Count the memories that have a vector of a space; None: Memory.embedding."""
        return cast("int", (await self._run(_FILLED[space is None or space.in_memories], space)).scalar_one())

    async def claim(self, space: EmbeddingSpace, size: int, *, lease: float, after: UUID | None) -> Sequence[Claim]:
        """Claim up to a batch of the memories that lack a vector and that nobody else has claimed.

        Raises:
            IllegalTransitionError: the space is gone, or going.
        """
        await self._turn()
        await self._hold(space)
        parameters = {"dimensions": space.dimensions, "size": size, "lease": lease, "after": after or _FIRST}
        rows = (await self._run(_CLAIM[space.in_memories], space, **parameters)).all()
        return [Claim(*row) for row in rows]

    async def put(self, space: EmbeddingSpace, claims: Sequence[Claim], vectors: Sequence[pgvector.Vector]) -> int:
        """Write the vectors of what was claimed; return how many were still wanted.

        Raises:
            IllegalTransitionError: the space is gone, or going.
        """
        await self._hold(space)
        binary = statements.speaks_binary(cast("Any", self._session.get_bind()))
        parameters: dict[str, object] = {
            "ids": [claim.id for claim in claims],
            "hashes": [claim.content_hash for claim in claims],
            "vectors": vectors if binary else [vector.to_text() for vector in vectors],
        }
        if space.in_memories:
            parameters["model"] = space.embedding_model
        return len((await self._run(_PUT[space.in_memories], space, **parameters)).all())

    async def give_back(self, space: EmbeddingSpace, claims: Sequence[Claim]) -> None:
        """Let others claim what this worker could not embed."""
        await self._run(_GIVE_BACK, space, ids=[claim.id for claim in claims])

    async def alone(self) -> None:
        """Wait for whoever writes memories of the organization, and keep the next one waiting."""
        await self._turn()
        await self._run(_ALONE)

    async def switch(self, active: EmbeddingSpace, target: EmbeddingSpace) -> None:
        """Make another space the active one; the caller is alone."""
        before = target.status
        # Two of one status never are, not even in between: the target steps aside through the status that is free.
        free = next(status for status in SpaceStatus if status not in {before, SpaceStatus.ACTIVE})
        active.status = free
        await self._flush()
        target.status = SpaceStatus.ACTIVE
        await self._flush()
        active.status = SpaceStatus.RETIRED
        await self._flush()
        self._beliefs.forget(self._tenant)

    async def doom(self, space: EmbeddingSpace) -> None:
        """Mark a space as going; the caller has locked it.  From here on nothing leads back."""
        space.status = SpaceStatus.CLEARING
        await self._flush()

    async def clear(self, space: EmbeddingSpace, size: int) -> int:
        """Take up to a batch of a doomed space's vectors away; return how many: none where it is gone.

        Raises:
            IllegalTransitionError: it is not doomed.
        """
        spaces = await self.spaces(lock=True)
        if not _doomed(space, spaces):
            return 0
        parameters: dict[str, object] = {"size": size}
        if space.in_memories:
            parameters["model"] = spaces[SpaceStatus.ACTIVE].embedding_model
        return len((await self._run(_CLEAR[space.in_memories], space, **parameters)).all())

    async def forget(self, space: EmbeddingSpace) -> None:
        """Forget a doomed space, and the whole move where nothing but Memory.embedding is left.

        Raises:
            IllegalTransitionError: it is not doomed.
        """
        if not _doomed(space, await self.spaces(lock=True)):
            return
        await self._execute(
            delete(EmbeddingSpace).where(EmbeddingSpace.org_id == self._tenant, EmbeddingSpace.id == space.id)
        )
        left = list((await self.spaces()).values())
        if len(left) == 1 and left[0].in_memories:
            await self._execute(delete(EmbeddingSpace).where(EmbeddingSpace.org_id == self._tenant))

    async def _hold(self, space: EmbeddingSpace) -> None:
        """Keep a space as it is until this transaction ends."""
        found = await self._execute(_HOLD_SPACE, {"org_id": self._tenant, "space_id": space.id})
        if found.scalar_one_or_none() in {None, SpaceStatus.CLEARING.value}:
            raise _over(space)

    async def _turn(self) -> None:
        await self._execute(_TURN, {"number": lock_number(self._tenant) ^ 0x5EED})

    async def _run(self, sql: str, space: EmbeddingSpace | None = None, **parameters: object) -> Any:
        values = {"org_id": self._tenant, **({"space_id": space.id} if space is not None else {}), **parameters}
        given = {name: value for name, value in values.items() if f":{name}" in sql}
        bound = text(sql).bindparams(*(bindparam(name, type_=_TYPES[name]) for name in given))
        return await self._execute(bound, given)


def _doomed(space: EmbeddingSpace, spaces: Mapping[SpaceStatus, EmbeddingSpace]) -> bool:
    """Tell whether a space is going; False: it is gone."""
    now = next((one for one in spaces.values() if one.id == space.id), None)
    if now is not None and now.status is not SpaceStatus.CLEARING:
        raise IllegalTransitionError(f"embedding model {now.embedding_model}", now.status.value, "cleared away")
    return now is not None


def _over(space: EmbeddingSpace) -> IllegalTransitionError:
    return IllegalTransitionError(
        f"embedding model {space.embedding_model}",
        "cleared away",
        "filled",
        "the move was rolled back or finished; finish() ends it where it was cut short, and fill() begins another",
    )
