"""Faults that people make on a live database, each as the SQL that makes it and what the doctor says of it."""

from dataclasses import dataclass

TENANT = "org_id = NULLIF(current_setting('app.current_org_id', true), '')::uuid"
AGENTS = "ibex_core.agents"
_TENANTS = "'00000000-0000-4000-8000-000000000000'"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        code, object: the finding that it must give.
        sql: what makes it.
        also: codes of findings that come with it.
        mendable: the printed SQL mends it; False where only an installation or an upgrade does.
    """

    code: str
    object: str
    sql: str
    also: frozenset[str] = frozenset()
    mendable: bool = True

    def __str__(self) -> str:
        return f"{self.code}: {self.object}"


def _made(table: str) -> str:
    """A tenant table of somebody else's, as good as ours."""
    return f"""
        CREATE TABLE ibex_core.{table} (org_id uuid NOT NULL, id uuid, other_id uuid, PRIMARY KEY (org_id, id));
        ALTER TABLE ibex_core.{table} OWNER TO ibex_owner;
        ALTER TABLE ibex_core.{table} ENABLE ROW LEVEL SECURITY;
        ALTER TABLE ibex_core.{table} FORCE ROW LEVEL SECURITY;
        CREATE POLICY {table}_tenant ON ibex_core.{table} TO ibex_app USING ({TENANT}) WITH CHECK ({TENANT});
        CREATE POLICY {table}_floor ON ibex_core.{table} AS RESTRICTIVE TO ibex_app USING ({TENANT});
        CREATE POLICY {table}_platform ON ibex_core.{table} TO ibex_platform USING (true);
        GRANT SELECT, INSERT, UPDATE, DELETE ON ibex_core.{table} TO ibex_app, ibex_platform;
        CREATE TRIGGER {table}_before_update BEFORE UPDATE ON ibex_core.{table}
            FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_org();
    """


TABLES = [
    Fault("rls-disabled", AGENTS, "ALTER TABLE ibex_core.agents DISABLE ROW LEVEL SECURITY"),
    Fault("rls-disabled", "ibex_core.memories_p03", "ALTER TABLE ibex_core.memories_p03 DISABLE ROW LEVEL SECURITY"),
    Fault("rls-not-forced", AGENTS, "ALTER TABLE ibex_core.agents NO FORCE ROW LEVEL SECURITY"),
    Fault("rls-not-forced", "ibex_core.memories_p03", "ALTER TABLE ibex_core.memories_p03 NO FORCE ROW LEVEL SECURITY"),
    Fault(
        "rls-disabled",
        "ibex_core.notes",
        "CREATE TABLE ibex_core.notes (org_id uuid PRIMARY KEY); ALTER TABLE ibex_core.notes OWNER TO ibex_owner",
        frozenset(
            {"rls-not-forced", "policy-missing", "policy-floor-missing", "grant-missing", "trigger-missing"}
            | {"table-unknown"}
        ),
    ),
    Fault("table-unknown", "ibex_core.notes", _made("notes")),
    Fault("table-unknown", "ibex_core.flags", "SET LOCAL ROLE ibex_owner; CREATE TABLE ibex_core.flags (id int)"),
    Fault("table-owner", AGENTS, "ALTER TABLE ibex_core.agents OWNER TO CURRENT_USER"),
    Fault("table-unlogged", "ibex_core.tokens", "ALTER TABLE ibex_core.tokens SET UNLOGGED"),
    Fault(
        "org-nullable",
        "ibex_core.notes.org_id",
        _made("notes") + "ALTER TABLE ibex_core.notes DROP CONSTRAINT notes_pkey, ALTER org_id DROP NOT NULL",
        frozenset({"table-unknown"}),
    ),
    Fault(
        "table-rule",
        "spy on ibex_core.users",
        "CREATE RULE spy AS ON INSERT TO ibex_core.users DO ALSO NOTIFY users",
    ),
    Fault("table-heir", "public.more", "CREATE TABLE public.more () INHERITS (ibex_core.users)"),
    Fault("table-heir", "public.more", "CREATE TABLE public.more () INHERITS (ibex_core.signing_keys)"),
    Fault("table-heir", "public.memories_p09", "ALTER TABLE ibex_core.memories_p09 SET SCHEMA public"),
]

POLICIES = [
    Fault("policy-missing", "agents_tenant on ibex_core.agents", "DROP POLICY agents_tenant ON ibex_core.agents"),
    Fault("policy-missing", "agents_platform on ibex_core.agents", "DROP POLICY agents_platform ON ibex_core.agents"),
    Fault("policy-floor-missing", "agents_floor on ibex_core.agents", "DROP POLICY agents_floor ON ibex_core.agents"),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (true)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents WITH CHECK (true)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = current_setting('app.current_org_id')::uuid)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents "
        "USING (org_id = (SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid))",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({TENANT} OR current_user = 'ibex_app')",
    ),
    Fault(
        "policy-changed",
        "agents_platform on ibex_core.agents",
        "ALTER POLICY agents_platform ON ibex_core.agents TO PUBLIC",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "DROP POLICY agents_tenant ON ibex_core.agents;"
        f"CREATE POLICY agents_tenant ON ibex_core.agents FOR SELECT TO ibex_app USING ({TENANT})",
    ),
    Fault(
        "policy-extra",
        "support on ibex_core.users",
        "CREATE POLICY support ON ibex_core.users TO ibex_app USING (true)",
    ),
    Fault(
        "policy-extra",
        "open on ibex_core.memories_p00",
        "CREATE POLICY open ON ibex_core.memories_p00 TO PUBLIC USING (true)",
    ),
    Fault(
        "signing-mixed",
        "agents_tenant on ibex_core.agents",
        f"ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = (SELECT {TENANT[9:]})) "
        f"WITH CHECK (org_id = (SELECT {TENANT[9:]}))",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        "ALTER POLICY agents_floor ON ibex_core.agents USING (org_id = ibex_core.signed_org()) "
        "WITH CHECK (org_id = ibex_core.signed_org())",
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        "CREATE FUNCTION public.org() RETURNS uuid LANGUAGE sql IMMUTABLE AS "
        "$$SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid$$;"
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = public.org())",
        frozenset({"policy-changed"}),
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        "CREATE FUNCTION public.org() RETURNS uuid LANGUAGE plpgsql STABLE AS "
        "$$BEGIN RETURN NULLIF(current_setting('app.current_org_id', true), '')::uuid; END$$;"
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = public.org())",
        frozenset({"policy-changed"}),
    ),
]

GRANTS = [
    Fault("grant-public", "ibex_core.users to PUBLIC", "GRANT SELECT ON ibex_core.users TO PUBLIC"),
    Fault("grant-excess", "ibex_core.users to ibex_app", "GRANT TRUNCATE ON ibex_core.users TO ibex_app"),
    Fault("grant-excess", "ibex_core.users to ibex_app", "GRANT REFERENCES, TRIGGER ON ibex_core.users TO ibex_app"),
    Fault(
        "grant-excess", "ibex_core.memory_versions to ibex_app", "GRANT UPDATE ON ibex_core.memory_versions TO ibex_app"
    ),
    Fault("grant-excess", "ibex_core.users to ibex_search", "GRANT SELECT ON ibex_core.users TO ibex_search"),
    Fault(
        "grant-excess",
        "ibex_core.users to ibex_app",
        "GRANT SELECT ON ibex_core.users TO ibex_app WITH GRANT OPTION",
    ),
    Fault(
        "grant-excess",
        "ibex_core.flags to ibex_app",
        "SET LOCAL ROLE ibex_owner; CREATE TABLE ibex_core.flags (id int); GRANT ALL ON ibex_core.flags TO ibex_app",
        frozenset({"table-unknown"}),
    ),
    Fault(
        "grant-column", "ibex_core.users.email to ibex_search", "GRANT SELECT (email) ON ibex_core.users TO ibex_search"
    ),
    Fault(
        "grant-column",
        "ibex_core.memory_versions.content to ibex_app",
        "GRANT UPDATE (content) ON ibex_core.memory_versions TO ibex_app",
    ),
    Fault(
        "grant-partition", "ibex_core.memories_p01 to ibex_app", "GRANT SELECT ON ibex_core.memories_p01 TO ibex_app"
    ),
    Fault(
        "grant-other",
        "ibex_core.users to doctor_analyst",
        "CREATE ROLE doctor_analyst; GRANT SELECT ON ibex_core.users TO doctor_analyst",
    ),
    Fault("grant-missing", "ibex_core.users to ibex_app", "REVOKE DELETE ON ibex_core.users FROM ibex_app"),
    Fault(
        "grant-missing",
        "ibex_core.memories.search_vector to ibex_search",
        "REVOKE SELECT (search_vector) ON ibex_core.memories FROM ibex_search",
    ),
    Fault("grant-missing", "ibex_core to ibex_app", "REVOKE USAGE ON SCHEMA ibex_core FROM ibex_app"),
    Fault(
        "grant-default",
        "new tables of ibex_owner IN SCHEMA ibex_core to ibex_app",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ibex_owner IN SCHEMA ibex_core GRANT ALL ON TABLES TO ibex_app",
    ),
    Fault(
        "grant-default",
        "new tables of ibex_owner to PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ibex_owner GRANT SELECT ON TABLES TO PUBLIC",
    ),
    Fault(
        "grant-excess",
        "ibex_core.alembic_version to ibex_app",
        "GRANT SELECT, UPDATE ON ibex_core.alembic_version TO ibex_app",
    ),
    Fault(
        "grant-public",
        "ibex_core.alembic_version to PUBLIC",
        "GRANT SELECT (version_num) ON ibex_core.alembic_version TO PUBLIC",
    ),
    Fault("schema-create", "ibex_core to ibex_app", "GRANT CREATE ON SCHEMA ibex_core TO ibex_app"),
    Fault("schema-create", "public to PUBLIC", "GRANT CREATE ON SCHEMA public TO PUBLIC"),
    Fault("schema-usage", "ibex_core to PUBLIC", "GRANT USAGE ON SCHEMA ibex_core TO PUBLIC"),
    Fault("schema-owner", "ibex_core", "ALTER SCHEMA ibex_core OWNER TO CURRENT_USER"),
]

KEYS = [
    Fault(
        "key-without-org",
        "notes_other_fkey on ibex_core.notes",
        _made("others")
        + _made("notes")
        + "ALTER TABLE ibex_core.others ADD CONSTRAINT others_id_key UNIQUE (id);"
        + "ALTER TABLE ibex_core.notes ADD CONSTRAINT notes_other_fkey FOREIGN KEY (other_id) "
        "REFERENCES ibex_core.others (id) ON DELETE SET NULL",
        frozenset({"unique-without-org", "table-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "users_email_key on ibex_core.users",
        "CREATE UNIQUE INDEX users_email_key ON ibex_core.users (email_lower)",
        frozenset({"index-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "users_email_key on ibex_core.users",
        "ALTER TABLE ibex_core.users ADD CONSTRAINT users_email_key UNIQUE (email, org_id)",
        frozenset({"constraint-unknown"}),
    ),
    Fault(
        "unique-without-org",
        "memories_p00_once on ibex_core.memories_p00",
        "CREATE UNIQUE INDEX memories_p00_once ON ibex_core.memories_p00 (content_hash)",
    ),
    Fault(
        "unique-without-org",
        "tokens_org_id_token_hash_key on ibex_core.tokens",
        "ALTER TABLE ibex_core.tokens DROP CONSTRAINT tokens_org_id_token_hash_key,"
        " ADD CONSTRAINT tokens_org_id_token_hash_key UNIQUE (token_hash)",
        frozenset({"constraint-changed"}),
    ),
    Fault(
        "constraint-missing",
        "memories_confidence_range on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_confidence_range",
    ),
    Fault(
        "constraint-missing",
        "sessions_session_status_known on ibex_core.sessions",
        "ALTER TABLE ibex_core.sessions DROP CONSTRAINT sessions_session_status_known",
    ),
    Fault(
        "constraint-missing",
        "memories_org_id_agent_id_fkey on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_org_id_agent_id_fkey",
    ),
    Fault(
        "constraint-changed",
        "memories_confidence_range on ibex_core.memories",
        "ALTER TABLE ibex_core.memories DROP CONSTRAINT memories_confidence_range,"
        " ADD CONSTRAINT memories_confidence_range CHECK (confidence >= 0)",
    ),
    Fault(
        "constraint-changed",
        "agents_org_id_created_by_fkey on ibex_core.agents",
        "ALTER TABLE ibex_core.agents DROP CONSTRAINT agents_org_id_created_by_fkey,"
        " ADD CONSTRAINT agents_org_id_created_by_fkey FOREIGN KEY (org_id, created_by)"
        " REFERENCES ibex_core.users (org_id, id) ON DELETE CASCADE",
    ),
    Fault(
        "constraint-unknown",
        "users_short on ibex_core.users",
        "ALTER TABLE ibex_core.users ADD CONSTRAINT users_short CHECK (length(name) < 20)",
    ),
    Fault(
        "constraint-not-valid",
        "users_name_length on ibex_core.users",
        "ALTER TABLE ibex_core.users DROP CONSTRAINT users_name_length, ADD CONSTRAINT users_name_length"
        r" CHECK (char_length(name) BETWEEN 1 AND 255 AND name ~ '\S') NOT VALID",
    ),
    Fault(
        "constraint-not-valid",
        "agents_org_id_created_by_fkey on ibex_core.agents",
        "ALTER TABLE ibex_core.agents DROP CONSTRAINT agents_org_id_created_by_fkey,"
        " ADD CONSTRAINT agents_org_id_created_by_fkey FOREIGN KEY (org_id, created_by)"
        " REFERENCES ibex_core.users (org_id, id) ON DELETE SET NULL (created_by) NOT VALID",
    ),
]

TRIGGERS = [
    Fault(
        "trigger-missing",
        "agents_before_update on ibex_core.agents",
        "DROP TRIGGER agents_before_update ON ibex_core.agents",
    ),
    Fault(
        "trigger-missing",
        "memories_after_update on ibex_core.memories",
        "DROP TRIGGER memories_after_update ON ibex_core.memories",
    ),
    Fault(
        "trigger-disabled",
        "checkpoints_before_update on ibex_core.checkpoints",
        "ALTER TABLE ibex_core.checkpoints DISABLE TRIGGER checkpoints_before_update",
    ),
    Fault(
        "trigger-disabled",
        "memories_after_update on ibex_core.memories_p05",
        "ALTER TABLE ibex_core.memories_p05 DISABLE TRIGGER memories_after_update",
    ),
    Fault(
        "trigger-disabled",
        "memories_after_insert on ibex_core.memories",
        "ALTER TABLE ibex_core.memories ENABLE REPLICA TRIGGER memories_after_insert",
    ),
    Fault(
        "trigger-changed",
        "memories_after_update on ibex_core.memories",
        "CREATE OR REPLACE TRIGGER memories_after_update AFTER UPDATE ON ibex_core.memories FOR EACH ROW"
        " WHEN (NEW.content IS DISTINCT FROM OLD.content) EXECUTE FUNCTION ibex_core.memories_next_version()",
    ),
    Fault(
        "trigger-changed",
        "agents_before_update on ibex_core.agents",
        "CREATE OR REPLACE TRIGGER agents_before_update BEFORE UPDATE ON ibex_core.agents FOR EACH ROW"
        " EXECUTE FUNCTION ibex_core.touch()",
    ),
    Fault(
        "trigger-unknown",
        "copy on ibex_core.users",
        "CREATE TRIGGER copy AFTER INSERT ON ibex_core.users FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_org()",
    ),
    Fault(
        "key-disabled",
        "ibex_core.tokens",
        "ALTER TABLE ibex_core.tokens DISABLE TRIGGER ALL",
        frozenset({"trigger-disabled"}),
    ),
]

_SPY = "FUNCTION ibex_core.spy() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM ibex_core.users'"
_BM25 = (
    "ibex_core.memories_bm25(query text, agents uuid[], corpus_rows bigint, mean_length double precision,"
    " k1 double precision, b double precision)"
)
_SERVICE = "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app"
_STEP = "CREATE ROLE doctor_group; ALTER ROLE doctor_one NOINHERIT; GRANT doctor_group TO doctor_one"
_PEEK = (
    "CREATE SCHEMA tools; CREATE FUNCTION tools.peek() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER"
    " AS 'SELECT count(*) FROM ibex_core.users'"
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
            f"{_SERVICE}; {owner}; {_PEEK}; ALTER FUNCTION tools.peek() OWNER TO doctor_other;"
            f"REVOKE ALL ON FUNCTION tools.peek() FROM PUBLIC; GRANT EXECUTE ON FUNCTION tools.peek() TO {caller}",
        )
        for owner, caller in (
            ("CREATE ROLE doctor_other IN ROLE ibex_owner", "doctor_one"),
            ("CREATE ROLE doctor_other LOGIN IN ROLE ibex_platform", "doctor_one"),
            ("CREATE ROLE doctor_other BYPASSRLS", "doctor_one"),
            ("CREATE ROLE doctor_other SUPERUSER", "doctor_one"),
            (
                f"CREATE ROLE doctor_other IN ROLE ibex_owner; {_STEP}",
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

VIEWS = [
    Fault("view-not-invoker", "public.everybody", "CREATE VIEW public.everybody AS SELECT * FROM ibex_core.users"),
    Fault(
        "view-not-invoker",
        "public.counted",
        "CREATE VIEW public.everybody WITH (security_invoker) AS SELECT * FROM ibex_core.users;"
        "CREATE VIEW public.counted AS SELECT count(*) FROM public.everybody",
    ),
    Fault(
        "view-materialized",
        "ibex_core.everybody",
        "CREATE MATERIALIZED VIEW ibex_core.everybody AS SELECT * FROM ibex_core.users",
    ),
    Fault(
        "view-not-invoker",
        "public.keys",
        "CREATE VIEW public.keys AS SELECT * FROM ibex_core.signing_keys",
    ),
    Fault(
        "view-materialized",
        "tools.keys",
        "CREATE SCHEMA tools; CREATE MATERIALIZED VIEW tools.keys AS SELECT * FROM ibex_core.signing_keys",
    ),
    Fault(
        "view-not-invoker",
        "public.gone",
        "CREATE VIEW public.gone AS SELECT * FROM ibex_core.organization_erasures",
    ),
    Fault(
        "view-not-invoker",
        "public.books",
        "CREATE VIEW public.books AS SELECT * FROM ibex_core.alembic_version",
    ),
]

ROLES = [
    Fault("role-attribute", "ibex_app", "ALTER ROLE ibex_app BYPASSRLS"),
    Fault("role-attribute", "ibex_platform", "ALTER ROLE ibex_platform LOGIN"),
    Fault("role-attribute", "ibex_owner", "ALTER ROLE ibex_owner SUPERUSER"),
    Fault(
        "role-missing",
        "ibex_search",
        "ALTER ROLE ibex_search RENAME TO doctor_gone",
        frozenset(
            {"function-public", "policy-changed", "grant-column", "grant-missing", "schema-usage", "function-owner"}
        ),
    ),
    Fault(
        "role-membership", "ibex_app in ibex_platform", "GRANT ibex_platform TO ibex_app", frozenset({"login-mixes"})
    ),
    Fault(
        "role-membership",
        "ibex_app in ibex_search",
        "GRANT ibex_search TO ibex_app WITH INHERIT FALSE",
        frozenset({"login-mixes"}),
    ),
    Fault("login-bypasses", "doctor_one", "CREATE ROLE doctor_one LOGIN BYPASSRLS IN ROLE ibex_app"),
    Fault("login-bypasses", "doctor_one", "CREATE ROLE doctor_one LOGIN SUPERUSER IN ROLE ibex_app"),
    Fault("login-powers", "doctor_one", "CREATE ROLE doctor_one LOGIN REPLICATION IN ROLE ibex_app"),
    Fault("login-mixes", "doctor_one in ibex_platform", "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app, ibex_platform"),
    Fault("login-mixes", "doctor_one in ibex_search", "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app, ibex_search"),
    Fault(
        "login-mixes",
        "doctor_one in ibex_owner",
        "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; GRANT ibex_owner TO doctor_one WITH INHERIT FALSE",
    ),
    Fault(
        "login-mixes",
        "doctor_one in ibex_platform",
        "CREATE ROLE doctor_group IN ROLE ibex_platform; CREATE ROLE doctor_one LOGIN IN ROLE ibex_app, doctor_group",
    ),
    Fault(
        "login-mixes",
        "doctor_one in pg_read_server_files",
        "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app, pg_read_server_files",
    ),
    *(
        Fault("login-mixes", f"doctor_one in {role}", f"{_SERVICE}; GRANT {role} TO doctor_one")
        for role in ("pg_monitor", "pg_read_all_data", "pg_write_all_data", "pg_signal_backend", "pg_checkpoint")
    ),
    Fault(
        "login-mixes",
        "doctor_one in doctor_root",
        "CREATE ROLE doctor_root SUPERUSER; CREATE ROLE doctor_one LOGIN IN ROLE ibex_app, doctor_root",
    ),
    *(
        Fault(
            "login-admin",
            f"doctor_one over {role}",
            f"{_SERVICE}; GRANT {role} TO doctor_one WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        )
        for role in ("ibex_platform", "ibex_owner", "ibex_search")
    ),
    Fault("login-admin", "doctor_one over ibex_app", f"{_SERVICE}; GRANT ibex_app TO doctor_one WITH ADMIN OPTION"),
    Fault(
        "login-admin",
        "doctor_one over ibex_platform",
        f"{_SERVICE}; GRANT ibex_platform TO doctor_one WITH ADMIN TRUE, INHERIT FALSE, SET TRUE",
    ),
    Fault(  # one GRANT to itself after another
        "login-admin",
        "doctor_one over ibex_platform",
        f"{_SERVICE}; CREATE ROLE doctor_group; GRANT doctor_group TO doctor_one WITH ADMIN TRUE, INHERIT FALSE,"
        " SET FALSE; GRANT ibex_platform TO doctor_group WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
    ),
    Fault(
        "login-admin",
        "ibex_app over ibex_platform",
        "GRANT ibex_platform TO ibex_app WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
    ),
    Fault("login-bypasses", "doctor_two", "CREATE ROLE doctor_two LOGIN SUPERUSER IN ROLE ibex_platform"),
    Fault("login-bypasses", "doctor_two", "CREATE ROLE doctor_two LOGIN BYPASSRLS IN ROLE ibex_platform"),
    *(
        Fault("login-mixes", f"doctor_two in {role}", f"CREATE ROLE doctor_two LOGIN IN ROLE ibex_platform, {role}")
        for role in ("ibex_owner", "ibex_search")
    ),
    Fault("login-mixes", "doctor_three in ibex_search", "CREATE ROLE doctor_three LOGIN IN ROLE ibex_search"),
    Fault(
        "login-mixes",
        "doctor_three in ibex_search",
        "CREATE ROLE doctor_three LOGIN; GRANT ibex_search TO doctor_three WITH INHERIT FALSE",
    ),
    Fault(
        "role-setting",
        "app.current_org_id of ROLE doctor_one",
        f"CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; ALTER ROLE doctor_one SET app.current_org_id = {_TENANTS}",
    ),
    Fault("role-setting", "search_path of ROLE ALL", "ALTER ROLE ALL SET search_path = public, pg_catalog"),
    Fault(
        "role-setting", "search_path of ROLE doctor_one", f"{_SERVICE}; ALTER ROLE doctor_one SET search_path = public"
    ),
    Fault(
        "role-setting",
        "session_preload_libraries of ROLE ibex_app",
        "ALTER ROLE ibex_app SET session_preload_libraries = 'auto_explain'",
    ),
    Fault(
        "role-setting",
        "app.current_org_signature of ROLE ibex_app",
        "ALTER ROLE ibex_app SET app.current_org_signature = 'a'",
    ),
    Fault("role-setting", "row_security of ROLE ibex_app", "ALTER ROLE ibex_app SET row_security = off"),
    Fault(
        "role-setting",
        "role of ROLE doctor_one",
        "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; ALTER ROLE doctor_one SET role = ibex_platform",
    ),
]

SERVER = [
    *(
        Fault(
            "parameter-grant",
            f"{privilege} {name} to {grantee}",
            f"{_SERVICE}; {_STEP}; CREATE ROLE doctor_two LOGIN IN ROLE ibex_platform;"
            f"GRANT {privilege} ON PARAMETER {name} TO {grantee}",
        )
        for privilege, name, grantee in (
            ("SET", "session_replication_role", "doctor_one"),
            ("SET", "session_replication_role", "doctor_group"),
            ("SET", "session_replication_role", "doctor_two"),
            ("SET", "session_replication_role", "PUBLIC"),
            ("ALTER SYSTEM", "work_mem", "doctor_one"),
            ("ALTER SYSTEM", "archive_command", "ibex_app"),
            ("SET", "log_statement", "ibex_app"),
        )
    ),
    Fault(
        "function-reserved",
        "pg_catalog.pg_read_file(text) to ibex_app",
        "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO ibex_app",
    ),
    Fault(
        "function-reserved",
        "pg_catalog.lo_import(text) to PUBLIC",
        "GRANT EXECUTE ON FUNCTION lo_import(text) TO PUBLIC",
    ),
    Fault(
        "event-trigger",
        "watch",
        "CREATE FUNCTION public.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION public.watch()",
    ),
]

STORAGE = [
    Fault(
        "index-invalid",
        "ibex_core.agents_org_id_created_by_idx",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.agents_org_id_created_by_idx'::regclass",
    ),
    Fault(
        "index-invalid",
        "ibex_core.memories_agent_id_idx",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.memories_agent_id_idx'::regclass",
    ),
    Fault(
        "index-changed",
        "ibex_core.memories_content_hash_org",
        "DROP INDEX ibex_core.memories_content_hash_org; CREATE UNIQUE INDEX memories_content_hash_org"
        " ON ibex_core.memories (org_id, agent_id, content_hash) WHERE status = 'active'",
    ),
    Fault("index-missing", "ibex_core.memory_tags_tag_idx", "DROP INDEX ibex_core.memory_tags_tag_idx"),
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

DRIFT = [
    Fault("column-missing", "ibex_core.sessions.last_error", "ALTER TABLE ibex_core.sessions DROP COLUMN last_error"),
    Fault("column-unknown", "ibex_core.users.phone", "ALTER TABLE ibex_core.users ADD COLUMN phone text"),
    Fault("column-changed", "ibex_core.users.name", "ALTER TABLE ibex_core.users ALTER COLUMN name DROP NOT NULL"),
    Fault(
        "column-changed",
        "ibex_core.sessions.turn_count",
        "ALTER TABLE ibex_core.sessions ALTER COLUMN turn_count TYPE bigint",
    ),
    Fault(
        "column-changed",
        "ibex_core.memories.status",
        "ALTER TABLE ibex_core.memories ALTER COLUMN status SET DEFAULT 'archived'",
    ),
    Fault("table-missing", "ibex_core.memory_tags", "DROP TABLE ibex_core.memory_tags"),
    Fault(
        "drift",
        "ibex_core.users.email_lower",
        "ALTER TABLE ibex_core.users ALTER COLUMN email_lower SET EXPRESSION AS (upper(email))",
        mendable=False,
    ),
    Fault(
        "revision-pending",
        "memory_0007",
        "UPDATE ibex_core.alembic_version SET version_num = 'memory_0006' WHERE version_num = 'memory_0007'",
        mendable=False,
    ),
    Fault(
        "revision-unknown",
        "memory_9999",
        "INSERT INTO ibex_core.alembic_version VALUES ('memory_9999')",
        mendable=False,
    ),
]

_KEY = "INSERT INTO ibex_core.signing_keys VALUES ('00000000', sha256('a') || sha256('b'), sha256('c') || sha256('d'))"
_KEYS = "ibex_core.signing_keys"
_SIGNED = "org_id = (SELECT ibex_core.signed_org())"

SIGNING = [
    Fault("signing-mixed", "agents_floor on ibex_core.agents", _KEY),
    Fault("signing-mixed", "agents_tenant on ibex_core.agents", _KEY),
    Fault("signing-mixed", "organizations_floor on ibex_core.organizations", _KEY),
    Fault(
        "signing-mixed",
        "ibex_core.memories_bm25(query text, agents uuid[], corpus_rows bigint, mean_length double precision, "
        "k1 double precision, b double precision)",
        _KEY,
    ),
    Fault(
        "signing-mixed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({_SIGNED}) WITH CHECK ({_SIGNED})",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({_SIGNED}) WITH CHECK (true)",
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        f"ALTER POLICY agents_tenant ON ibex_core.agents USING ({_SIGNED}) WITH CHECK ({_SIGNED})",
        frozenset({"policy-changed"}),
    ),
    Fault("signing-keys", f"{_KEYS} to ibex_app", "GRANT SELECT (inner_pad) ON ibex_core.signing_keys TO ibex_app"),
    Fault("signing-keys", f"{_KEYS} to PUBLIC", "GRANT SELECT ON ibex_core.signing_keys TO PUBLIC"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys DISABLE ROW LEVEL SECURITY"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys FORCE ROW LEVEL SECURITY"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys OWNER TO CURRENT_USER"),
    Fault(
        "signing-keys",
        f"all_keys on {_KEYS}",
        "CREATE POLICY all_keys ON ibex_core.signing_keys USING (true)",
    ),
    Fault(
        "function-changed",
        "ibex_core.signed_org()",
        "CREATE OR REPLACE FUNCTION ibex_core.signed_org() RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, pg_temp AS "
        "$$SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid$$",
    ),
    Fault(
        "login-mixes",
        "doctor_one in ibex_platform",
        "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; GRANT ibex_platform TO doctor_one WITH INHERIT FALSE;" + _KEY,
        frozenset({"signing-mixed"}),
    ),
]

FAULTS = [
    *TABLES,
    *SIGNING,
    *POLICIES,
    *GRANTS,
    *KEYS,
    *TRIGGERS,
    *FUNCTIONS,
    *VIEWS,
    *ROLES,
    *SERVER,
    *STORAGE,
    *DRIFT,
]
