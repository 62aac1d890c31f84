"""Which peers there are, and what each is installed from: exact versions, so that the figures can be made again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One peer.

    Attributes:
        name: as tables show it.
        module: of the adapter in benchmarks.peers.
        requirements: what its environment is made of.
        shown: packages whose versions are printed.
        settings: what its documentation offers and we have used.
    """

    name: str
    module: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]
    settings: str


RECIPES = (
    Recipe(
        "mem0",
        "mem0",
        ("mem0ai==2.2.1", "psycopg[binary,pool]==3.3.9"),
        ("mem0ai", "psycopg"),
        "PGVector(hnsw=True), filter on user_id",
    ),
    Recipe(
        "LangGraph store",
        "langgraph",
        ("langgraph-checkpoint-postgres==3.2.0", "psycopg[binary,pool]==3.3.9"),
        ("langgraph-checkpoint-postgres", "langgraph-checkpoint", "psycopg"),
        "AsyncPostgresStore with a pool, hnsw index, a namespace for each tenant",
    ),
    Recipe(
        "LangChain PGVectorStore",
        "langchain",
        ("langchain-postgres==0.0.19", "sqlalchemy==2.1.9", "asyncpg==0.32.0"),
        ("langchain-postgres", "sqlalchemy", "asyncpg", "pgvector"),
        "PGEngine.from_engine, HNSWIndex, HNSWQueryOptions(ef_search=100) unless the login has it set, "
        "a metadata column for the tenant with an index",
    ),
    Recipe(
        "LlamaIndex PGVectorStore",
        "llamaindex",
        ("llama-index-vector-stores-postgres==0.9.0", "asyncpg==0.32.0"),
        ("llama-index-vector-stores-postgres", "llama-index-core", "sqlalchemy", "asyncpg", "pgvector"),
        "hnsw_kwargs with ef_search=100, use_jsonb and indexed_metadata_keys for the tenant",
    ),
)
