"""Organizations, users, directives and their versions, agents, tokens.

Revision ID: tenancy_0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from ibex_db_core.base import SCHEMA
from ibex_db_core.policies import OWNER_ROLE, secure

revision = "tenancy_0001"
down_revision = None
branch_labels = ("tenancy",)
depends_on = "core_0001"

# Parents first: directive_versions before the agents that follow one.
_TABLES = ("organizations", "users", "directives", "directive_versions", "agents", "tokens")

# BEFORE triggers fire by name: before_update (org_id is kept), then keep_version.
_KEEP_VERSION = f"""
CREATE FUNCTION {SCHEMA}.keep_directive_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.directive_id, NEW.version_number, NEW.content, NEW.content_hash)
        IS DISTINCT FROM (OLD.directive_id, OLD.version_number, OLD.content, OLD.content_hash)
    THEN
        RAISE EXCEPTION 'directive version % is immutable: write a new version instead', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'directive_versions_content_immutable',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    """Make the tables, owned by the owner role and isolated."""
    _organizations()
    _users()
    _directives()
    _directive_versions()
    _agents()
    _tokens()
    for table in _TABLES:
        op.execute(f"ALTER TABLE {SCHEMA}.{table} OWNER TO {OWNER_ROLE}")
        for statement in secure(
            table,
            tenant_column="id" if table == "organizations" else "org_id",
            touched=table != "directive_versions",
        ):
            op.execute(statement)
    op.execute(_KEEP_VERSION)
    op.execute(f"ALTER FUNCTION {SCHEMA}.keep_directive_version() OWNER TO {OWNER_ROLE}")
    op.execute(
        f"CREATE TRIGGER directive_versions_keep_version BEFORE UPDATE ON {SCHEMA}.directive_versions "
        f"FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.keep_directive_version()"
    )


def downgrade() -> None:
    """Drop the tables, children first, with their policies, triggers and indexes."""
    for table in reversed(_TABLES):
        op.drop_table(table, schema=SCHEMA)
    op.execute(f"DROP FUNCTION {SCHEMA}.keep_directive_version()")


def _organizations() -> None:
    op.create_table(
        "organizations",
        _id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("tier", sa.String(32), server_default="free", nullable=False),
        sa.Column("status", sa.String(32), server_default="active", nullable=False),
        _json("settings"),
        _now("created_at"),
        _now("updated_at"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("organizations_pkey")),
        sa.UniqueConstraint("slug", name=op.f("organizations_slug_key")),
        _check("organizations_name_length", r"char_length(name) BETWEEN 1 AND 255 AND name ~ '\S'"),
        _check("organizations_slug_length", "char_length(slug) BETWEEN 1 AND 100"),
        _check("organizations_slug_format", "slug ~ '^[a-z0-9-]+$'"),
        _check("organizations_organization_tier_known", "tier IN ('free', 'pro', 'enterprise')"),
        _check("organizations_organization_status_known", "status IN ('active', 'trial', 'suspended', 'cancelled')"),
        _check("organizations_settings_is_object", "jsonb_typeof(settings) = 'object'"),
        schema=SCHEMA,
    )


def _users() -> None:
    op.create_table(
        "users",
        _org("users"),
        _id(),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("email_lower", sa.Text(), sa.Computed("lower(email)", persisted=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.String(32), server_default="member", nullable=False),
        sa.Column("status", sa.String(32), server_default="active", nullable=False),
        _json("preferences"),
        _moment("last_login_at"),
        _now("created_at"),
        _now("updated_at"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("users_pkey")),
        _check("users_email_length", "char_length(email) BETWEEN 3 AND 320"),
        _check("users_email_format", r"email ~ '^[^@\s]+@[^@\s]+\.[^@\s]+$'"),
        _check("users_name_length", r"char_length(name) BETWEEN 1 AND 255 AND name ~ '\S'"),
        _check("users_user_role_known", "role IN ('owner', 'admin', 'member', 'viewer')"),
        _check("users_user_status_known", "status IN ('active', 'invited', 'suspended', 'deactivated')"),
        _check("users_preferences_is_object", "jsonb_typeof(preferences) = 'object'"),
        schema=SCHEMA,
    )
    _index("users_org_id_email_lower_live", "users", "email_lower", unique=True, where="deleted_at IS NULL")


def _directives() -> None:
    op.create_table(
        "directives",
        _org("directives"),
        _id(),
        sa.Column("created_by", sa.Uuid()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        _now("created_at"),
        _now("updated_at"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("directives_pkey")),
        _parent("directives", "created_by", "users", "SET NULL (created_by)"),
        _check("directives_name_length", r"char_length(name) BETWEEN 1 AND 255 AND name ~ '\S'"),
        _check("directives_description_length", "char_length(description) BETWEEN 0 AND 10000"),
        schema=SCHEMA,
    )
    _index("directives_org_id_name_live", "directives", "name", unique=True, where="deleted_at IS NULL")
    _index("directives_org_id_created_by_idx", "directives", "created_by")


def _directive_versions() -> None:
    op.create_table(
        "directive_versions",
        _org("directive_versions"),
        _id(),
        sa.Column("directive_id", sa.Uuid(), nullable=False),
        sa.Column("version_number", sa.Integer(), nullable=False),
        sa.Column("parent_version_id", sa.Uuid()),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.String(32), server_default="draft", nullable=False),
        sa.Column("change_summary", sa.Text()),
        sa.Column("created_by", sa.Uuid()),
        _moment("activated_at"),
        _now("created_at"),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("directive_versions_pkey")),
        sa.UniqueConstraint(
            "org_id",
            "directive_id",
            "version_number",
            name=op.f("directive_versions_org_id_directive_id_version_number_key"),
        ),
        _parent("directive_versions", "directive_id", "directives", "CASCADE"),
        _parent("directive_versions", "parent_version_id", "directive_versions", "SET NULL (parent_version_id)"),
        _parent("directive_versions", "created_by", "users", "SET NULL (created_by)"),
        _check("directive_versions_version_number_range", "version_number >= 1"),
        _check("directive_versions_parent_is_another", "parent_version_id <> id"),
        _check("directive_versions_content_length", r"char_length(content) BETWEEN 1 AND 1000000 AND content ~ '\S'"),
        _check("directive_versions_content_hash_format", "content_hash ~ '^[0-9a-f]{64}$'"),
        _check(
            "directive_versions_content_hash_matches",
            "content_hash = encode(sha256(convert_to(content, 'UTF8')), 'hex')",
        ),
        _check(
            "directive_versions_directive_version_status_known",
            "status IN ('draft', 'review', 'active', 'deprecated', 'revoked')",
        ),
        _check("directive_versions_change_summary_length", "char_length(change_summary) BETWEEN 0 AND 10000"),
        schema=SCHEMA,
    )
    _index(
        "directive_versions_org_id_directive_id_active",
        "directive_versions",
        "directive_id",
        unique=True,
        where="status = 'active'",
    )
    _index("directive_versions_org_id_parent_version_id_idx", "directive_versions", "parent_version_id")
    _index("directive_versions_org_id_created_by_idx", "directive_versions", "created_by")


def _agents() -> None:
    op.create_table(
        "agents",
        _org("agents"),
        _id(),
        sa.Column("created_by", sa.Uuid()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("status", sa.String(32), server_default="active", nullable=False),
        _json("config"),
        _json("metadata"),
        sa.Column("active_directive_version_id", sa.Uuid()),
        _moment("last_active_at"),
        _now("created_at"),
        _now("updated_at"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("agents_pkey")),
        _parent("agents", "created_by", "users", "SET NULL (created_by)"),
        _parent(
            "agents", "active_directive_version_id", "directive_versions", "SET NULL (active_directive_version_id)"
        ),
        _check("agents_name_length", r"char_length(name) BETWEEN 1 AND 255 AND name ~ '\S'"),
        _check("agents_slug_length", "char_length(slug) BETWEEN 1 AND 100"),
        _check("agents_slug_format", "slug ~ '^[a-z0-9-]+$'"),
        _check("agents_description_length", "char_length(description) BETWEEN 0 AND 10000"),
        _check("agents_agent_status_known", "status IN ('active', 'paused', 'suspended', 'archived')"),
        _check("agents_config_is_object", "jsonb_typeof(config) = 'object'"),
        _check("agents_metadata_is_object", "jsonb_typeof(metadata) = 'object'"),
        schema=SCHEMA,
    )
    _index("agents_org_id_slug_live", "agents", "slug", unique=True, where="deleted_at IS NULL")
    _index("agents_org_id_created_by_idx", "agents", "created_by")
    _index("agents_org_id_active_directive_version_id_idx", "agents", "active_directive_version_id")


def _tokens() -> None:
    op.create_table(
        "tokens",
        _org("tokens"),
        _id(),
        sa.Column("user_id", sa.Uuid()),
        sa.Column("agent_id", sa.Uuid()),
        sa.Column("kind", sa.String(32), server_default="personal", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("permissions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        _moment("expires_at"),
        _moment("last_used_at"),
        sa.Column("use_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        _moment("revoked_at"),
        sa.Column("revoked_by", sa.Uuid()),
        sa.Column("revoke_reason", sa.Text()),
        _now("created_at"),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("tokens_pkey")),
        sa.UniqueConstraint("org_id", "token_hash", name=op.f("tokens_org_id_token_hash_key")),
        _parent("tokens", "user_id", "users", "CASCADE"),
        _parent("tokens", "agent_id", "agents", "CASCADE"),
        _parent("tokens", "revoked_by", "users", "SET NULL (revoked_by)"),
        _check("tokens_token_kind_known", "kind IN ('personal', 'organization', 'service')"),
        _check("tokens_name_length", r"char_length(name) BETWEEN 1 AND 255 AND name ~ '\S'"),
        _check("tokens_prefix_length", r"char_length(prefix) BETWEEN 1 AND 32 AND prefix ~ '\S'"),
        _check("tokens_token_hash_format", "token_hash ~ '^[0-9a-f]{64}$'"),
        _check("tokens_permissions_range", "permissions >= 0"),
        _check("tokens_use_count_range", "use_count >= 0"),
        _check("tokens_revoked_has_moment", "revoked_at IS NOT NULL OR (revoked_by IS NULL AND revoke_reason IS NULL)"),
        _check("tokens_revoke_reason_length", "char_length(revoke_reason) BETWEEN 0 AND 10000"),
        schema=SCHEMA,
    )
    _index("tokens_org_id_user_id_idx", "tokens", "user_id")
    _index("tokens_org_id_agent_id_idx", "tokens", "agent_id")
    _index("tokens_org_id_revoked_by_idx", "tokens", "revoked_by")


def _id() -> "sa.Column[object]":
    return sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False)


def _org(table: str) -> "sa.Column[object]":
    key = sa.ForeignKey(f"{SCHEMA}.organizations.id", name=op.f(f"{table}_org_id_fkey"), ondelete="CASCADE")
    return sa.Column("org_id", sa.Uuid(), key, nullable=False)


def _json(name: str) -> "sa.Column[object]":
    return sa.Column(name, JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False)


def _moment(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True))


def _now(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _check(name: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(rule, name=op.f(name))


def _parent(table: str, column: str, parent: str, ondelete: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["org_id", column],
        [f"{SCHEMA}.{parent}.org_id", f"{SCHEMA}.{parent}.id"],
        name=op.f(f"{table}_org_id_{column}_fkey"),
        ondelete=ondelete,
    )


def _index(name: str, table: str, column: str, *, unique: bool = False, where: str | None = None) -> None:
    op.create_index(
        op.f(name),
        table,
        ["org_id", column],
        unique=unique,
        schema=SCHEMA,
        postgresql_where=sa.text(where) if where else None,
    )
