"""Weather reports of users."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "weather_reports",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("city", sa.String(200), nullable=False),
        sa.Column("country", sa.String(2), nullable=False),
        sa.Column("temperature", sa.Float(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_weather_reports_owner_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_weather_reports")),
    )
    op.create_index(op.f("ix_weather_reports_owner_id"), "weather_reports", ["owner_id"])
    op.create_index(op.f("ix_weather_reports_created_at_id"), "weather_reports", ["created_at", "id"])
    op.create_index(op.f("ix_weather_reports_city_created_at_id"), "weather_reports", ["city", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("weather_reports")
