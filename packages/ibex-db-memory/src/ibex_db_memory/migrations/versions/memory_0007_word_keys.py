"""What an entry of the index of words is: its organization, a word, and how often one memory says it.

Revision ID: memory_0007

The index of words was over search_vector: one entry for a word, whoever said
it.  A search found it in the neighbours' rows too, and threw those away, which
cost time, and told by time how often neighbours say a word.  What was read
from each found row's words (stored out of line, most of a search's time) is
in the new index already.

In steps, so that nobody waits while it is built and whoever searches meanwhile
finds as before: this function, the indexes (memory_0008), the function that
searches (memory_0009), and only then the old index goes (memory_0010).
"""

from alembic import op

from ibex_db_core.migrations import online
from ibex_db_core.policies import OWNER_ROLE, SEARCH_ROLE

revision = "memory_0007"
down_revision = "memory_0006"
branch_labels = None
depends_on = None

# 12 bytes of SHA-256: nobody finds a word whose entry is that of another organization's.  The digit is how often
# the memory says the word, 4 standing for more: beyond, BM25 adds next to nothing.
# COST: no plan should compute this for a row that an index could have left out.
_WORD_KEYS = """
CREATE OR REPLACE FUNCTION ibex_core.memories_word_keys(org uuid, words tsvector) RETURNS bytea[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN ARRAY(SELECT substring(sha256(uuid_send(org) || convert_to(
            least(COALESCE(cardinality(said.positions), 1), 4)::text || said.lexeme, 'UTF8')) FROM 1 FOR 12)
        FROM unnest(words) said);
END $$
"""
_KEYS_SIGNATURE = "ibex_core.memories_word_keys(uuid, tsvector)"


def upgrade() -> None:
    """Make the function; the search may read how long a content is, from memory_0009 on."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_WORD_KEYS)
    op.execute(f"GRANT SELECT (content) ON ibex_core.memories TO {SEARCH_ROLE}")
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take it away, with what a build of memory_0008 that died may have left."""
    # The function cannot go while half an index is made of it.  These commit by themselves, and can be run again.
    online.drop_index("memories_words_idx")
    online.drop_index("memories_created_at_idx")
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(f"REVOKE SELECT (content) ON ibex_core.memories FROM {SEARCH_ROLE}")
    op.execute(f"DROP FUNCTION {_KEYS_SIGNATURE}")
    op.execute("SET LOCAL ROLE NONE")
