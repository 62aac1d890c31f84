"""What tells a bound reference from a loose one: it catches each way of leaving the organization out."""

import pytest
from arms import Statement

TABLES = frozenset({"memories", "memory_tags", "agents"})

M, T, A = "ibex_core.memories", "ibex_core.memory_tags", "ibex_core.agents"

BOUND = [
    f"SELECT FROM {M} WHERE org_id = $1",
    f"SELECT FROM {M} m WHERE m.id = $2 AND (m.org_id = $1::uuid AND m.status = 'active')",
    f"SELECT FROM {M} WHERE (org_id, id) = ($1, $2)",
    f"SELECT FROM {M} m JOIN {T} t ON t.org_id = m.org_id WHERE m.org_id = $1",
    f"SELECT FROM {M} m JOIN {T} t USING (org_id) WHERE t.org_id = $1",
    f"SELECT FROM {M} m, {T} t WHERE m.org_id = t.org_id AND t.org_id = $1",
    f"SELECT FROM {A} a LEFT JOIN {M} m ON m.org_id = a.org_id WHERE a.org_id = $1",
    f"SELECT FROM {A} a LEFT JOIN {M} m ON m.org_id = $1 WHERE a.org_id = $1",
    f"SELECT FROM {M} WHERE org_id = $1 AND id IN (SELECT memory_id FROM {T} WHERE org_id = $1)",
    f"SELECT FROM {M} m WHERE m.org_id = $1 AND EXISTS (SELECT FROM {T} t WHERE t.org_id = m.org_id)",
    f"SELECT FROM {M} m, LATERAL (SELECT FROM {T} t WHERE t.org_id = m.org_id) t WHERE m.org_id = $1",
    f"SELECT FROM {M} WHERE org_id = $1 UNION ALL SELECT FROM {A} WHERE org_id = $1",
    f"SELECT (SELECT count(*) FROM {M} WHERE org_id = $1)",
    (
        f"WITH due AS (SELECT org_id, id FROM {M} WHERE org_id = $1) "
        f"UPDATE {M} m SET deleted_at = now() FROM due WHERE m.org_id = $1 AND m.id = due.id"
    ),
    (
        f"WITH gone AS (DELETE FROM {T} WHERE org_id = $1 RETURNING memory_id) "
        f"INSERT INTO {T} (org_id, memory_id) SELECT $1, memory_id FROM gone"
    ),
    f"INSERT INTO {M} (id, org_id) VALUES ($2, $1), ($3, $1)",
    f"INSERT INTO {T} (org_id, memory_id) SELECT m.org_id, m.id FROM {M} m WHERE m.org_id = $1",
    f"DELETE FROM {M} m USING {T} t WHERE m.org_id = t.org_id AND t.org_id = $1",
    (
        f"WITH RECURSIVE w AS (SELECT id FROM {M} WHERE org_id = $1 UNION "
        f"SELECT m.id FROM w JOIN {M} m ON m.org_id = $1 AND m.id = w.id) SELECT FROM w"
    ),
    f"SELECT FROM (SELECT org_id FROM {M} WHERE org_id = $1) n JOIN {T} t ON t.org_id = n.org_id",
    "SELECT FROM ibex_core.organizations",
    "SELECT pg_advisory_xact_lock($2)",
]

LOOSE = {
    f"SELECT FROM {M}": ["SELECT memories"],
    f"SELECT FROM {M} WHERE id = $2": ["SELECT memories"],
    f"SELECT FROM {M} WHERE org_id = $2": ["SELECT memories"],
    f"SELECT FROM {M} WHERE org_id = $1 OR id = $2": ["SELECT memories"],
    f"SELECT FROM {M} WHERE NOT org_id = $1": ["SELECT memories"],
    f"SELECT FROM {M} WHERE org_id <> $1": ["SELECT memories"],
    f"SELECT FROM {M} m JOIN {T} t ON t.memory_id = m.id WHERE m.org_id = $1": ["SELECT memory_tags AS t"],
    f"SELECT FROM {M} m LEFT JOIN {T} t ON m.org_id = $1 AND t.org_id = $1": ["SELECT memories AS m"],
    f"SELECT FROM {M} m LEFT JOIN {T} t ON t.org_id = m.org_id AND t.org_id = $1": ["SELECT memories AS m"],
    f"SELECT FROM {M} m FULL JOIN {T} t ON t.org_id = m.org_id WHERE m.org_id = $1": ["SELECT memory_tags AS t"],
    f"SELECT FROM {M} WHERE org_id = $1 AND id IN (SELECT memory_id FROM {T})": ["SELECT memory_tags"],
    f"SELECT FROM {M} m WHERE m.org_id = $1 AND EXISTS (SELECT FROM {T} t WHERE t.memory_id = m.id)": [
        "SELECT memory_tags AS t"
    ],
    # A sub-select that is not lateral does not see its neighbour, and hides an outer alias.
    f"SELECT FROM {M} m WHERE m.org_id = $1 AND EXISTS (SELECT FROM {T} m WHERE m.tag = 'x')": [
        "SELECT memory_tags AS m"
    ],
    f"SELECT FROM {M} WHERE org_id = $1 UNION ALL SELECT FROM {A}": ["SELECT agents"],
    f"SELECT (SELECT count(*) FROM {M})": ["SELECT memories"],
    f"SELECT count(*) FILTER (WHERE EXISTS (SELECT FROM {M}))": ["SELECT memories"],
    f"SELECT FROM {M} WHERE org_id = $1 ORDER BY (SELECT count(*) FROM {T})": ["SELECT memory_tags"],
    f"WITH due AS (SELECT org_id, id FROM {M} WHERE org_id = $1) "
    f"UPDATE {M} m SET deleted_at = now() FROM due WHERE m.id = due.id": ["UPDATE memories AS m"],
    f"WITH due AS (SELECT org_id, id FROM {M}) UPDATE {M} m SET x = 1 FROM due WHERE m.org_id = due.org_id": [
        "SELECT memories",
        "UPDATE memories AS m",
    ],
    f"UPDATE {M} SET status = (SELECT max(tag) FROM {T}) WHERE org_id = $1": ["SELECT memory_tags"],
    # Met on a cluster: four shards were asked.
    f"WITH free AS (SELECT org_id, id FROM {M} WHERE org_id = $1 FOR UPDATE) "
    f"UPDATE {M} m SET x = 1 FROM free WHERE m.org_id = free.org_id AND m.id = free.id": ["UPDATE memories AS m"],
    f"DELETE FROM {M} WHERE id = $2": ["DELETE memories"],
    f"WITH gone AS (DELETE FROM {T} RETURNING 1) SELECT FROM gone": ["DELETE memory_tags"],
    f"INSERT INTO {M} (id) VALUES ($2)": ["INSERT memories"],
    f"INSERT INTO {M} (org_id, id) VALUES ($1, $2), ($3, $2)": ["INSERT memories"],
    f"INSERT INTO {M} SELECT $1": ["INSERT memories"],
    f"INSERT INTO {T} (org_id, memory_id) SELECT m.org_id, m.id FROM {M} m": [
        "SELECT memories AS m",
        "INSERT memory_tags",
    ],
    f"INSERT INTO {M} (org_id) VALUES ($1) ON CONFLICT DO UPDATE SET x = (SELECT count(*) FROM {T})": [
        "SELECT memory_tags"
    ],
    f"WITH RECURSIVE w AS (SELECT id FROM {M} WHERE org_id = $1 UNION "
    f"SELECT m.id FROM w JOIN {M} m ON m.id = w.id) SELECT FROM w": ["SELECT memories AS m"],
    f"WITH RECURSIVE w AS (SELECT org_id, id FROM {M} WHERE org_id = $1 UNION "
    f"SELECT m.org_id, m.id FROM w JOIN {M} m ON m.org_id = w.org_id) SELECT FROM w": ["SELECT memories AS m"],
    f"SELECT FROM (SELECT org_id FROM {M}) n JOIN {T} t ON t.org_id = n.org_id": [
        "SELECT memories",
        "SELECT memory_tags AS t",
    ],
}


def loose(sql: str) -> list[str]:
    return [str(one) for one in Statement(sql, TABLES, lambda number: number == 1).loose]


@pytest.mark.parametrize("sql", BOUND)
def test_a_statement_whose_every_arm_names_the_organization_is_bound(sql: str) -> None:
    assert loose(sql) == []


@pytest.mark.parametrize("sql", LOOSE)
def test_a_statement_with_an_arm_that_does_not_is_caught(sql: str) -> None:
    assert loose(sql) == LOOSE[sql]


def test_what_a_statement_reads_of_tenants_is_counted() -> None:
    assert Statement(f"SELECT FROM {M} m JOIN {T} t USING (org_id)", TABLES, lambda _: False).references == 2
    assert Statement("SELECT FROM ibex_core.organizations", TABLES, lambda _: False).references == 0
