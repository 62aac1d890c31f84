"""Settings of the server, the database and its logins."""

from faults.fault import SERVICE, STEP, Fault

SERVER = [
    *(
        Fault(
            "parameter-grant",
            f"{privilege} {name} to {grantee}",
            f"{SERVICE}; {STEP}; CREATE ROLE doctor_two LOGIN IN ROLE ibex_platform;"
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
