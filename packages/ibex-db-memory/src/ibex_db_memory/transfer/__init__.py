"""Memories on the move: the file that export writes and import_ reads, and what both stand on."""

from ibex_db_memory.transfer.outcomes import Imported, ImportedItem, ImportOutcome

__all__ = ["ImportOutcome", "Imported", "ImportedItem"]
