"""Erasure: receipts, tombstones and the key of their hashes; receipts of whole organizations.

Revision ID: tenancy_0002
"""

from alembic import op

from ibex_db_core.base import SCHEMA
from ibex_db_core.policies import OWNER_ROLE, secure, secure_platform

revision = "tenancy_0002"
down_revision = "tenancy_0001"
branch_labels = None
depends_on = None

_RECEIPTS = """
CREATE TABLE ibex_core.erasure_receipts (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    subject_kind varchar(32) NOT NULL,
    subject_id uuid NOT NULL,
    counts jsonb NOT NULL,
    fingerprint varchar(64) NOT NULL,
    erased_at timestamptz DEFAULT now() NOT NULL,
    erased_by uuid,
    reason text,
    CONSTRAINT erasure_receipts_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT erasure_receipts_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT erasure_receipts_counts_is_object CHECK (jsonb_typeof(counts) = 'object'),
    CONSTRAINT erasure_receipts_subject_kind_length CHECK (char_length(subject_kind) BETWEEN 1 AND 32),
    CONSTRAINT erasure_receipts_subject_kind_format CHECK (subject_kind ~ '^[a-z_]+$'),
    CONSTRAINT erasure_receipts_fingerprint_format CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    CONSTRAINT erasure_receipts_reason_length CHECK (char_length(reason) BETWEEN 0 AND 10000)
);
CREATE INDEX erasure_receipts_subject_idx ON ibex_core.erasure_receipts (org_id, subject_id)
"""

_TOMBSTONES = """
CREATE TABLE ibex_core.erasure_tombstones (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    receipt_id uuid NOT NULL,
    subject_kind varchar(32) NOT NULL,
    subject_id uuid NOT NULL,
    fingerprint varchar(64) NOT NULL,
    CONSTRAINT erasure_tombstones_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT erasure_tombstones_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT erasure_tombstones_org_id_receipt_id_fkey FOREIGN KEY (org_id, receipt_id)
        REFERENCES ibex_core.erasure_receipts (org_id, id) ON DELETE CASCADE,
    CONSTRAINT erasure_tombstones_subject_kind_length CHECK (char_length(subject_kind) BETWEEN 1 AND 32),
    CONSTRAINT erasure_tombstones_subject_kind_format CHECK (subject_kind ~ '^[a-z_]+$'),
    CONSTRAINT erasure_tombstones_fingerprint_format CHECK (fingerprint ~ '^[0-9a-f]{64}$')
);
CREATE INDEX erasure_tombstones_receipt_idx ON ibex_core.erasure_tombstones (org_id, receipt_id);
CREATE INDEX erasure_tombstones_subject_idx ON ibex_core.erasure_tombstones (org_id, subject_id);
CREATE INDEX erasure_tombstones_fingerprint_idx ON ibex_core.erasure_tombstones (org_id, fingerprint)
"""

_KEYS = """
CREATE TABLE ibex_core.erasure_keys (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    key bytea NOT NULL,
    CONSTRAINT erasure_keys_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT erasure_keys_org_id_key UNIQUE (org_id),
    CONSTRAINT erasure_keys_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT erasure_keys_key_length CHECK (octet_length(key) = 32)
)
"""

# No org_id and no foreign key: it outlives the organization that it speaks of.
_ORGANIZATIONS = """
CREATE TABLE ibex_core.organization_erasures (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    counts jsonb NOT NULL,
    fingerprint varchar(64) NOT NULL,
    salt bytea NOT NULL,
    erased_at timestamptz DEFAULT now() NOT NULL,
    erased_by uuid,
    reason text,
    CONSTRAINT organization_erasures_pkey PRIMARY KEY (id),
    CONSTRAINT organization_erasures_counts_is_object CHECK (jsonb_typeof(counts) = 'object'),
    CONSTRAINT organization_erasures_salt_length CHECK (octet_length(salt) = 32),
    CONSTRAINT organization_erasures_fingerprint_format CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    CONSTRAINT organization_erasures_reason_length CHECK (char_length(reason) BETWEEN 0 AND 10000)
);
CREATE INDEX organization_erasures_organization_idx ON ibex_core.organization_erasures (organization_id)
"""

_TENANT_TABLES = ("erasure_receipts", "erasure_tombstones", "erasure_keys")


def upgrade() -> None:
    """Make the tables, owned by the owner role: three for each tenant's eyes, one for the platform's."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    for statements in (_RECEIPTS, _TOMBSTONES, _KEYS, _ORGANIZATIONS):
        for statement in statements.split(";\n"):
            op.execute(statement)
    for table in _TENANT_TABLES:
        for statement in secure(table, append_only=True, touched=False):
            op.execute(statement)
    for statement in secure_platform("organization_erasures"):
        op.execute(statement)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Drop them; with the receipts goes every proof of an erasure, and with the tombstones every refusal."""
    for table in ("organization_erasures", "erasure_keys", "erasure_tombstones", "erasure_receipts"):
        op.execute(f"DROP TABLE {SCHEMA}.{table}")
