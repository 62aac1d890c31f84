-- The table that mem0ai 2.2.1 makes: PGVector(collection_name="mem0", embedding_model_dims=384, hnsw=True).
-- test_importers_peers.py holds it to the package itself.
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE mem0 (
    id uuid PRIMARY KEY,
    vector vector(384),
    payload jsonb
);
CREATE INDEX mem0_hnsw_idx ON mem0 USING hnsw (vector vector_cosine_ops);
CREATE INDEX mem0_text_lemmatized_idx ON mem0 USING gin (to_tsvector('simple', payload->>'text_lemmatized'));
