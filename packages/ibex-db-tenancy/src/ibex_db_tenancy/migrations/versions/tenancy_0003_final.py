"""A revoked token stays revoked, its secret never changes, and the platform alone gives and changes slugs.

Revision ID: tenancy_0003
"""

from alembic import op

from ibex_db_core.policies import OWNER_ROLE

revision = "tenancy_0003"
down_revision = "tenancy_0002"
branch_labels = None
depends_on = None

_REVOCATIONS = """
CREATE FUNCTION ibex_core.keep_tokens_revoked() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.token_hash <> OLD.token_hash OR NEW.prefix <> OLD.prefix THEN
        RAISE EXCEPTION 'the secret of token % is immutable: issue or rotate a token', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'tokens_secret_immutable',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    -- revoked_by becomes NULL when that user is erased.
    IF OLD.revoked_at IS NOT NULL AND (
        NEW.revoked_at IS DISTINCT FROM OLD.revoked_at
        OR NEW.revoke_reason IS DISTINCT FROM OLD.revoke_reason
        OR (NEW.revoked_by IS DISTINCT FROM OLD.revoked_by AND NEW.revoked_by IS NOT NULL)
    ) THEN
        RAISE EXCEPTION 'token % is revoked for good: issue a new one', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'tokens_revocation_final',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END $$
"""

# A tenant that may try slugs learns from the unique key which organizations there are, so it is refused before that.
_SLUGS = """
CREATE FUNCTION ibex_core.keep_organization_slug() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Says the same whether the slug is taken or free: the unique index has not been asked yet.
    IF TG_OP = 'UPDATE' THEN
        IF NEW.slug = OLD.slug THEN
            RETURN NEW;
        END IF;
    END IF;
    IF NOT pg_catalog.pg_has_role(current_user, 'ibex_platform', 'USAGE') THEN
        RAISE EXCEPTION 'slugs are given by the platform: use db.platform()'
            USING ERRCODE = '42501', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END $$
"""

_REVOCATION_TRIGGER = """
CREATE TRIGGER tokens_stay_revoked BEFORE UPDATE ON ibex_core.tokens
    FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_tokens_revoked()
"""
_SLUG_TRIGGER = """
CREATE TRIGGER organizations_keep_slug BEFORE INSERT OR UPDATE ON ibex_core.organizations
    FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_organization_slug()
"""


def upgrade() -> None:
    """Make both functions, owned by the owner role, and their triggers."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    for statement in (_REVOCATIONS, _REVOCATION_TRIGGER, _SLUGS, _SLUG_TRIGGER):
        op.execute(statement)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Drop them: tokens can be brought back to life again, and tenants can try slugs."""
    op.execute("DROP TRIGGER organizations_keep_slug ON ibex_core.organizations")
    op.execute("DROP TRIGGER tokens_stay_revoked ON ibex_core.tokens")
    op.execute("DROP FUNCTION ibex_core.keep_organization_slug()")
    op.execute("DROP FUNCTION ibex_core.keep_tokens_revoked()")
