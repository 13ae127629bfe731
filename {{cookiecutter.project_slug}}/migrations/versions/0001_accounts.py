"""Accounts: users, sessions, tokens, second factors, throttle counters, audit events and outgoing e-mails."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Events cannot be deleted for 23 hours: an hour less than the shortest AUDIT_LOG_LIFETIME_SECONDS, since clocks differ.
SQLITE_GUARDS = (
    """
    CREATE TRIGGER audit_events_never_change BEFORE UPDATE ON audit_events
    BEGIN SELECT RAISE(ABORT, 'audit events never change'); END
    """,
    """
    CREATE TRIGGER audit_events_stay BEFORE DELETE ON audit_events
    WHEN OLD.created_at > datetime('now', '-23 hours')
    BEGIN SELECT RAISE(ABORT, 'audit events stay for a day'); END
    """,
)
POSTGRESQL_GUARDS = (
    """
    CREATE OR REPLACE FUNCTION refuse_change_of_audit_events() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'audit events %', TG_ARGV[0]; END $$
    """,
    """
    CREATE TRIGGER audit_events_never_change BEFORE UPDATE ON audit_events
    EXECUTE FUNCTION refuse_change_of_audit_events('never change')
    """,
    """
    CREATE TRIGGER audit_events_stay BEFORE DELETE ON audit_events
    FOR EACH ROW WHEN (OLD.created_at > now() - interval '23 hours')
    EXECUTE FUNCTION refuse_change_of_audit_events('stay for a day')
    """,
    """
    CREATE TRIGGER audit_events_are_not_emptied BEFORE TRUNCATE ON audit_events
    EXECUTE FUNCTION refuse_change_of_audit_events('stay for a day')
    """,
)
# The service's role has no right to delete events, so this function deletes old events with the rights of the tables'
# owner. The search_path is fixed, with pg_temp last: the caller cannot replace an object that the function uses.
PURGE_FUNCTION = """
    CREATE OR REPLACE FUNCTION purge_audit_events(created_before timestamptz, batch_size integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, {schema}, pg_temp AS $$
        WITH batch AS (
            SELECT id FROM audit_events WHERE created_at <= created_before LIMIT batch_size FOR UPDATE SKIP LOCKED
        ), deleted AS (DELETE FROM audit_events WHERE id IN (SELECT id FROM batch) RETURNING id)
        SELECT count(*) FROM deleted
    $$
"""


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("email_verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_index(op.f("ix_users_created_at_id"), "users", ["created_at", "id"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.String(200), nullable=False),
        sa.Column("address", sa.String(45), nullable=True),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name=op.f("fk_refresh_tokens_session_id_sessions"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refresh_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_refresh_tokens_token_hash")),
    )
    op.create_index(op.f("ix_refresh_tokens_session_id"), "refresh_tokens", ["session_id"])
    op.create_table(
        "known_networks",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_known_networks_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "network", name=op.f("pk_known_networks")),
    )
    op.create_index(op.f("ix_known_networks_network"), "known_networks", ["network"])
    op.create_table(
        "second_factors",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("secret", sa.String(255), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_step", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_second_factors_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_second_factors")),
    )
    op.create_table(
        "second_factor_failures",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_second_factor_failures_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_second_factor_failures")),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_recovery_codes_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "code_hash", name=op.f("pk_recovery_codes")),
    )
    op.create_table(
        "throttle_counts",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("undecided", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("delay_seconds", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_throttle_counts")),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("event", sa.String(50), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("address", sa.String(45), nullable=True),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index(op.f("ix_audit_events_created_at_id"), "audit_events", ["created_at", "id"])
    op.create_index(op.f("ix_audit_events_user_id_created_at_id"), "audit_events", ["user_id", "created_at", "id"])
    op.create_table(
        "one_time_tokens",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(50), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("address", sa.String(254), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_one_time_tokens_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_one_time_tokens")),
    )
    op.create_index(op.f("ix_one_time_tokens_user_id"), "one_time_tokens", ["user_id"])
    op.create_table(
        "outgoing_emails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(50), nullable=False),
        sa.Column("address", sa.String(254), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outgoing_emails")),
    )
    op.create_index(op.f("ix_outgoing_emails_due_at"), "outgoing_emails", ["due_at"])
    op.create_table(
        "passkeys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("credential_id", sa.String(1364), nullable=False),
        sa.Column("public_key", sa.String(1400), nullable=False),
        sa.Column("sign_count", sa.BigInteger(), nullable=False),
        sa.Column("transports", sa.JSON(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_passkeys_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_passkeys")),
        sa.UniqueConstraint("credential_id", name=op.f("uq_passkeys_credential_id")),
    )
    op.create_index(op.f("ix_passkeys_user_id"), "passkeys", ["user_id"])
    guard_audit_events()


def guard_audit_events() -> None:
    """Make audit events append-only by triggers: events cannot be changed, and only old ones can be deleted."""
    dialect = op.get_bind().dialect
    for guard in SQLITE_GUARDS if dialect.name == "sqlite" else POSTGRESQL_GUARDS:
        op.execute(guard)
    if dialect.name != "sqlite":
        schema = op.get_bind().scalar(sa.select(sa.func.quote_ident(sa.func.current_schema())))
        op.execute(PURGE_FUNCTION.format(schema=schema))
        op.execute("REVOKE ALL ON FUNCTION purge_audit_events FROM PUBLIC")


def downgrade() -> None:
    op.drop_table("passkeys")
    op.drop_table("outgoing_emails")
    op.drop_table("one_time_tokens")
    op.drop_table("audit_events")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION purge_audit_events")
        op.execute("DROP FUNCTION refuse_change_of_audit_events()")
    op.drop_table("throttle_counts")
    op.drop_table("recovery_codes")
    op.drop_table("second_factor_failures")
    op.drop_table("second_factors")
    op.drop_table("known_networks")
    op.drop_table("refresh_tokens")
    op.drop_table("sessions")
    op.drop_table("users")
