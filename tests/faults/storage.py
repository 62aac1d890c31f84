"""Indexes, publications and what else lies on the disk."""

from faults.fault import Fault

STORAGE = [
    Fault(
        "index-invalid",
        "ibex_core.agents_org_id_created_by_idx",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.agents_org_id_created_by_idx'::regclass",
    ),
    Fault(
        "index-invalid",
        "ibex_core.memories_by_agent_idx",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.memories_by_agent_idx'::regclass",
    ),
    Fault(
        "index-changed",
        "ibex_core.memories_content_hash_org",
        "DROP INDEX ibex_core.memories_content_hash_org; CREATE UNIQUE INDEX memories_content_hash_org"
        " ON ibex_core.memories (org_id, agent_id, content_hash) WHERE status = 'active'",
    ),
    Fault("index-missing", "ibex_core.memory_tags_by_tag_idx", "DROP INDEX ibex_core.memory_tags_by_tag_idx"),
    Fault(
        "index-unknown",
        "ibex_core.memories_counted",
        "CREATE INDEX memories_counted ON ibex_core.memories (retrieval_count)",
    ),
    Fault(
        "index-options",
        "ibex_core.memories_embedding_hnsw_p02",
        "ALTER INDEX ibex_core.memories_embedding_hnsw_p02 SET (ef_construction = 64)",
    ),
    Fault("fillfactor", "ibex_core.memories_p07", "ALTER TABLE ibex_core.memories_p07 RESET (fillfactor)"),
    Fault(
        "column-storage",
        "ibex_core.memories_p04.embedding",
        "ALTER TABLE ibex_core.memories_p04 ALTER COLUMN embedding SET STORAGE EXTERNAL",
    ),
    Fault(
        "partition-missing",
        "ibex_core.memories_p09",
        "ALTER TABLE ibex_core.memories DETACH PARTITION ibex_core.memories_p09",
        frozenset({"policy-missing", "policy-floor-missing", "grant-missing", "trigger-missing", "table-unknown"}),
    ),
    Fault(
        "publication",
        "doctor_feed",
        "CREATE PUBLICATION doctor_feed FOR TABLE ibex_core.users, ibex_core.tokens",
    ),
    Fault("publication", "doctor_feed", "CREATE PUBLICATION doctor_feed FOR ALL TABLES"),
    Fault("publication", "doctor_feed", "CREATE PUBLICATION doctor_feed FOR TABLE ibex_core.signing_keys"),
    Fault("vector-version", "vector 0.8.1", "UPDATE pg_extension SET extversion = '0.8.1' WHERE extname = 'vector'"),
    Fault(
        "extension-outdated", "vector 0.8.4", "UPDATE pg_extension SET extversion = '0.8.4' WHERE extname = 'vector'"
    ),
]
