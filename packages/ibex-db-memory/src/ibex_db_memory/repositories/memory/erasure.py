"""Erasing memories for good."""

from uuid import UUID

from ibex_db_memory.models import Memory
from ibex_db_tenancy import Erased
from ibex_db_tenancy.repositories.erasing import Erasing


class Erasure(Erasing[Memory]):
    """The end of a memory."""

    model = Memory

    async def erase(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Erased:
        """Erase a memory, forgotten or not, with its versions, tags and relationships; return the receipt kept.

        No search, history, walk or list of tags shows anything of it from then
        on, and import_() refuses it.  Memories that it superseded keep their
        status and lose the pointer.  Its rows and its entry in the vector index
        are dead from the commit on, and leave the disk with the next VACUUM;
        copies in backups are not reached.

        Args:
            ident: the memory.
            reason: for the receipt; it must not quote the memory.
            actor: who erases it, for the receipt.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a wig.", category="factual", tags=["x"])
            >>> gone = await memories.erase(kept.memory.id, reason="asked for it")
            >>> gone["memories"], gone["memory_versions"], gone["memory_tags"], gone["memory_relationships"]
            (1, 1, 1, 0)

        Raises:
            NotFoundError: no such memory in this organization.
        """
        return await super().erase(ident, reason=reason, actor=actor)
