from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Float, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.models import Base, TimestampMixin


class WeatherReport(TimestampMixin, Base):
    """A user's observation. Every signed-in user may read it; its author is not shown."""

    __tablename__ = "weather_reports"
    # For paginated lists of all reports, and of the reports from one city.
    __table_args__ = (Index(None, "created_at", "id"), Index(None, "city", "created_at", "id"))

    owner_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    city: Mapped[str] = mapped_column(String(200))
    country: Mapped[str] = mapped_column(String(2))
    # Degrees Celsius.
    temperature: Mapped[float] = mapped_column(Float)
    description: Mapped[str] = mapped_column(Text, default="")


class ReportRecord(NamedTuple):
    id: UUID
    city: str
    country: str
    temperature: float
    description: str
    created_at: datetime
    updated_at: datetime
