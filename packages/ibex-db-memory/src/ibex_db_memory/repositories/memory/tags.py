"""Labels of memories, and how many memories carry each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ARRAY, Text, Uuid, bindparam, case, delete, false, func, or_, select, text, true
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.content import normalise_tag
from ibex_db_memory.drafts import check_tags
from ibex_db_memory.models import Memory, MemoryStatus, MemoryTag
from ibex_db_memory.search.filters import limit_of


@dataclass(frozen=True, slots=True)
class TagCount:
    """A tag, and how many active memories carry it that have not expired."""

    tag: str
    count: int


# Whoever changes tags locks the memory first, and a renaming all of its memories, in one order: it takes tags off and
# puts others on, and so does whoever tags beside it, in another order.  By the ids, as an array: joined, an
# organization that statistics do not know would be read once for each of its rows.
_HOLD = text(
    """
    SELECT FROM ibex_core.memories WHERE org_id = :org_id AND id = ANY(ARRAY(
        SELECT memory_id FROM ibex_core.memory_tags WHERE org_id = :org_id AND tag = :old
    )) ORDER BY id FOR UPDATE
    """
).bindparams(bindparam("org_id", type_=Uuid()), bindparam("old", type_=Text()))

# Both tags on one memory become one, hence the insert that may find it done.
_RENAME = text(
    """
    WITH gone AS (
        DELETE FROM ibex_core.memory_tags WHERE org_id = :org_id AND tag = :old RETURNING memory_id
    ), renamed AS (
        INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag)
        SELECT :org_id, memory_id, :new FROM gone ORDER BY memory_id
        ON CONFLICT (org_id, memory_id, tag) DO NOTHING
    )
    SELECT count(*) FROM gone
    """
).bindparams(bindparam("org_id", type_=Uuid()), bindparam("old", type_=Text()), bindparam("new", type_=Text()))


class Tags(BaseRepository[Memory]):
    """Tagging an organization's memories."""

    model = Memory

    async def tag(self, ident: UUID, *tags: str) -> Sequence[str]:
        """Put tags on a memory; return those that it did not have yet, normalised.

        Raises:
            InvalidInputError: no tag, or one that is blank or too long.
            ForeignKeyError: no such memory in this organization.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Sings alto.", category="factual")
            >>> await memories.tag(kept.memory.id, "Music", "choir")
            ['choir', 'music']
        """
        ident = validation.uuid("id", ident)
        wanted = sorted(_some(tags))
        await self._hold(ident)
        # In one order: two callers with the same tags in another order would wait for each other.
        rows = [{"org_id": self._tenant, "memory_id": ident, "tag": tag} for tag in wanted]
        statement = (
            insert(MemoryTag)
            .values(rows)
            .on_conflict_do_nothing(constraint="memory_tags_tag_key")
            .returning(MemoryTag.tag)
        )
        return sorted((await self._execute(statement)).scalars())

    async def untag(self, ident: UUID, *tags: str) -> Sequence[str]:
        """Take tags off a memory; return those that it had, normalised.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Sings alto.", category="factual", tags=["music"])
            >>> await memories.untag(kept.memory.id, "MUSIC", "choir")
            ['music']
        """
        ident, wanted = validation.uuid("id", ident), list(_some(tags))
        await self._hold(ident)
        statement = delete(MemoryTag).where(
            MemoryTag.org_id == self._tenant,
            MemoryTag.memory_id == ident,
            # COALESCE, which never is needed, hides the index by tag: the key by memory is what to read.
            func.coalesce(MemoryTag.tag, "") == func.any(bindparam("tags", wanted, type_=ARRAY(Text()))),
        )
        return sorted((await self._execute(statement.returning(MemoryTag.tag))).scalars())

    async def tags(self, *, agent_id: UUID | None = None, limit: int = 100) -> Sequence[TagCount]:
        """Return the tags of active memories and how many carry each, the most used first; expired ones do not count.

        Args:
            agent_id: of this agent's memories; None: of all.
            limit: how many tags, 1 to 1000.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Sings alto.", category="factual", tags=["music"])
            >>> await memories.tags()
            [TagCount(tag='music', count=1)]
        """
        count = func.count().label("count")
        found = select(Memory.id).where(
            Memory.org_id == self._tenant,
            Memory.deleted_at.is_(None),
            Memory.status == MemoryStatus.ACTIVE,
            or_(Memory.expires_at.is_(None), Memory.expires_at > func.now()),
        )
        if agent_id is not None:
            found = found.where(Memory.agent_id == validation.uuid("agent_id", agent_id))
        active = found.subquery("active")
        carried = select(MemoryTag.memory_id, MemoryTag.tag).where(MemoryTag.org_id == self._tenant).subquery("carried")
        # A full join is hashed or merged, never a loop in a loop, which is what the planner would take for an
        # organization that statistics do not know.  CASE hides from it that neither half alone is wanted.
        both = case((or_(active.c.id.is_(None), carried.c.tag.is_(None)), false()), else_=true())
        statement = (
            select(carried.c.tag, count)
            .select_from(active.join(carried, carried.c.memory_id == active.c.id, full=True))
            .where(both)
            .group_by(carried.c.tag)
            .order_by(count.desc(), carried.c.tag)
            .limit(limit_of(limit))
        )
        return [TagCount(*row) for row in (await self._execute(statement)).all()]

    async def rename_tag(self, old: str, new: str) -> int:
        """Rename a tag on every memory of the organization, all at once; return how many carried it.

        Where a memory has both, one remains.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Sings alto.", category="factual", tags=["musik"])
            >>> await memories.rename_tag("musik", "music")
            1
        """
        before, after = normalise_tag(old), normalise_tag(new)
        if before == after:
            raise InvalidInputError("new", new, f"must be another tag than {before!r}")
        await self._execute(_HOLD, {"org_id": self._tenant, "old": before})
        result = await self._execute(_RENAME, {"org_id": self._tenant, "old": before, "new": after})
        return int(result.scalar_one())

    async def _hold(self, ident: UUID) -> None:
        """Lock a memory as a foreign key to it would, before its tags are touched."""
        held = select(Memory.id).where(Memory.org_id == self._tenant, Memory.id == ident)
        await self._execute(held.with_for_update(read=True, key_share=True))


def _some(tags: Iterable[str]) -> Sequence[str]:
    found = check_tags(tags)
    if not found:
        raise InvalidInputError("tags", [], "must name at least one tag")
    return found
