"""From other libraries' tables: what a row of theirs is as a memory."""
