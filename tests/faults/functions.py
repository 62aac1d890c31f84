"""Functions."""

from faults.fault import PEEK, SERVICE, STEP, Fault

_SPY = "FUNCTION ibex_core.spy() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM ibex_core.users'"
_BM25 = (
    "ibex_core.memories_bm25(query text, agents uuid[], corpus_rows bigint, mean_length double precision,"
    " k1 double precision, b double precision)"
)
FUNCTIONS = [
    Fault("function-unknown", "ibex_core.spy()", f"SET LOCAL ROLE ibex_owner; CREATE {_SPY}"),
    Fault(
        "function-definer",
        "ibex_core.spy()",
        f"CREATE {_SPY} SECURITY DEFINER",
        frozenset({"function-unknown", "function-owner"}),
    ),
    Fault(
        "function-definer",
        "public.spy()",
        f"CREATE {_SPY.replace('ibex_core.spy', 'public.spy')} SECURITY DEFINER",
    ),
    Fault("function-owner", "ibex_core.keep_org()", "ALTER FUNCTION ibex_core.keep_org() OWNER TO CURRENT_USER"),
    Fault(
        "function-changed",
        "ibex_core.touch_and_keep_org()",
        "CREATE OR REPLACE FUNCTION ibex_core.touch_and_keep_org() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN NEW.updated_at := now(); RETURN NEW; END'",
    ),
    Fault("function-definer", "ibex_core.keep_org()", "ALTER FUNCTION ibex_core.keep_org() SECURITY DEFINER"),
    Fault(
        "function-missing",
        "ibex_core.sessions_refuse_step()",
        "DROP FUNCTION ibex_core.sessions_refuse_step() CASCADE",
        frozenset({"trigger-missing"}),
    ),
    Fault(
        "function-search-path",
        _BM25,
        f"ALTER FUNCTION {_BM25} RESET search_path",
    ),
    Fault("function-search-path", _BM25, f"ALTER FUNCTION {_BM25} SET search_path = pg_catalog"),
    Fault("function-search-path", _BM25, f"ALTER FUNCTION {_BM25} SET search_path = public, pg_catalog"),
    Fault("function-search-path", _BM25, f'ALTER FUNCTION {_BM25} SET search_path = "$user", public'),
    Fault("function-search-path", _BM25, f"ALTER FUNCTION {_BM25} SET search_path = 'pg_catalog, pg_temp'"),
    Fault(
        "function-search-path",
        "ibex_core.signed_org()",
        "ALTER FUNCTION ibex_core.signed_org() SET search_path = pg_temp, pg_catalog",
    ),
    Fault("function-changed", _BM25, f"ALTER FUNCTION {_BM25} SET app.current_org_id = ''"),
    Fault("function-changed", _BM25, f"ALTER FUNCTION {_BM25} RESET plan_cache_mode"),
    Fault("function-changed", "ibex_core.keep_org()", "ALTER FUNCTION ibex_core.keep_org() SET role = ibex_owner"),
    Fault("function-changed", "ibex_core.keep_org()", "ALTER FUNCTION ibex_core.keep_org() SET search_path = public"),
    # It may be executed by a service alone, and its owner is mighty by way of another role.
    *(
        Fault(
            "function-definer",
            "tools.peek()",
            f"{SERVICE}; {owner}; {PEEK}; ALTER FUNCTION tools.peek() OWNER TO doctor_other;"
            f"REVOKE ALL ON FUNCTION tools.peek() FROM PUBLIC; GRANT EXECUTE ON FUNCTION tools.peek() TO {caller}",
        )
        for owner, caller in (
            ("CREATE ROLE doctor_other IN ROLE ibex_owner", "doctor_one"),
            ("CREATE ROLE doctor_other LOGIN IN ROLE ibex_platform", "doctor_one"),
            ("CREATE ROLE doctor_other BYPASSRLS", "doctor_one"),
            ("CREATE ROLE doctor_other SUPERUSER", "doctor_one"),
            (
                f"CREATE ROLE doctor_other IN ROLE ibex_owner; {STEP}",
                "doctor_group",
            ),
        )
    ),
    Fault("function-public", _BM25, f"GRANT EXECUTE ON FUNCTION {_BM25} TO PUBLIC"),
    Fault(
        "function-leakproof",
        "pg_catalog.ts_match_vq(tsvector, tsquery)",
        "ALTER FUNCTION pg_catalog.ts_match_vq(tsvector, tsquery) LEAKPROOF",
    ),
    Fault(
        "function-leakproof",
        "public.cosine_distance(vector, vector)",
        "ALTER FUNCTION public.cosine_distance(vector, vector) LEAKPROOF",
    ),
    Fault(
        "function-leakproof",
        "public.peep(text)",
        "CREATE FUNCTION public.peep(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'",
    ),
]
