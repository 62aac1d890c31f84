"""The keys that sign tenants, and the function that checks a signature.

Revision ID: core_0002

Nothing asks the function until signing is switched on (`ibex-db sign`).  All
SQL is written out, so that this revision stays what it is when the code moves on.
"""

from alembic import context, op
from sqlalchemy import text

from ibex_db_core.errors import MigrationError
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE

revision = "core_0002"
down_revision = "core_0001"
branch_labels = None
depends_on = None

# The blocks are as good as the key itself.  Row security without a policy, and
# not forced: the owner reads them, and a GRANT made by mistake shows nobody a row.
_KEYS = """
CREATE TABLE ibex_core.signing_keys (
    id text NOT NULL,
    inner_pad bytea NOT NULL,
    outer_pad bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    valid_until timestamptz,
    CONSTRAINT signing_keys_pkey PRIMARY KEY (id),
    CONSTRAINT signing_keys_id_format CHECK (id ~ '^[0-9a-f]{8}$'),
    CONSTRAINT signing_keys_pads_length CHECK (octet_length(inner_pad) = 64 AND octet_length(outer_pad) = 64)
)
"""

_SIGNED_ORG = """
CREATE FUNCTION ibex_core.signed_org() RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    org CONSTANT text := NULLIF(current_setting('app.current_org_id', true), '');
    signature CONSTANT text := COALESCE(current_setting('app.current_org_signature', true), '');
    moment CONSTANT text := split_part(signature, '.', 2);
    inner_block bytea;
    outer_block bytea;
BEGIN
    IF org IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT k.inner_pad, k.outer_pad INTO inner_block, outer_block FROM ibex_core.signing_keys k
    WHERE k.id = split_part(current_setting('app.current_org_signature', true), '.', 4)
        AND (k.valid_until IS NULL OR k.valid_until > now());
    IF encode(sha256(outer_block || sha256(inner_block || convert_to(
            current_database() || '.' || org || '.' || moment || '.' || pg_backend_pid(), 'UTF8'))), 'hex')
        = split_part(signature, '.', 1)
    THEN
        IF abs(extract(epoch FROM now()) - moment::bigint) <= 10 THEN
            RETURN org::uuid;
        END IF;
        RAISE EXCEPTION 'the signature of the tenant was made % seconds from the beginning of its transaction',
            round(abs(extract(epoch FROM now()) - moment::bigint)) USING ERRCODE = 'IB002';
    END IF;
    RAISE EXCEPTION 'the tenant of this transaction is not signed: %', CASE
        WHEN signature = '' THEN 'no signature came with it'
        WHEN signature !~ '^[0-9a-f]{64}[.][0-9]{1,12}[.][0-9]{1,10}[.][0-9a-f]{8}$'
            THEN 'the signature is malformed'
        WHEN inner_block IS NULL THEN 'the key ' || split_part(signature, '.', 4) || ' is not, or no longer, valid here'
        WHEN split_part(signature, '.', 3) <> pg_backend_pid()::text THEN 'the signature is that of another connection'
        ELSE 'the signature is that of another organization or database, or forged'
    END USING ERRCODE = 'IB001';
END $$
"""


def upgrade() -> None:
    """Make the table, for the owner alone, and the function, for services and the search function."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_KEYS)
    op.execute("ALTER TABLE ibex_core.signing_keys ENABLE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON ibex_core.signing_keys FROM PUBLIC, {APP_ROLE}, {PLATFORM_ROLE}, {SEARCH_ROLE}")
    op.execute(_SIGNED_ORG)
    op.execute(f"REVOKE ALL ON FUNCTION ibex_core.signed_org() FROM PUBLIC, {PLATFORM_ROLE}")
    op.execute(f"GRANT EXECUTE ON FUNCTION ibex_core.signed_org() TO {APP_ROLE}, {SEARCH_ROLE}")
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take both away; refused while signing is on."""
    if not context.is_offline_mode() and op.get_bind().scalar(text("SELECT EXISTS (TABLE ibex_core.signing_keys)")):
        raise MigrationError("signing is on: `ibex-db sign --disable` first")
    op.execute("DROP FUNCTION ibex_core.signed_org()")
    op.execute("DROP TABLE ibex_core.signing_keys")
