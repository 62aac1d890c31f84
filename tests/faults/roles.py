"""Roles and logins."""

from faults.fault import SERVICE, TENANTS, Fault

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
        Fault("login-mixes", f"doctor_one in {role}", f"{SERVICE}; GRANT {role} TO doctor_one")
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
            f"{SERVICE}; GRANT {role} TO doctor_one WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        )
        for role in ("ibex_platform", "ibex_owner", "ibex_search")
    ),
    Fault("login-admin", "doctor_one over ibex_app", f"{SERVICE}; GRANT ibex_app TO doctor_one WITH ADMIN OPTION"),
    Fault(
        "login-admin",
        "doctor_one over ibex_platform",
        f"{SERVICE}; GRANT ibex_platform TO doctor_one WITH ADMIN TRUE, INHERIT FALSE, SET TRUE",
    ),
    Fault(  # one GRANT to itself after another
        "login-admin",
        "doctor_one over ibex_platform",
        f"{SERVICE}; CREATE ROLE doctor_group; GRANT doctor_group TO doctor_one WITH ADMIN TRUE, INHERIT FALSE,"
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
        f"CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; ALTER ROLE doctor_one SET app.current_org_id = {TENANTS}",
    ),
    Fault("role-setting", "search_path of ROLE ALL", "ALTER ROLE ALL SET search_path = public, pg_catalog"),
    Fault(
        "role-setting", "search_path of ROLE doctor_one", f"{SERVICE}; ALTER ROLE doctor_one SET search_path = public"
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
