from pydantic import Field, ValidationInfo, field_validator

from app.core.addresses import WebUrl
from app.core.config.base import (
    DAY_SECONDS,
    MAX_COUNT,
    MAX_LIFETIME_SECONDS,
    MAX_WAIT_SECONDS,
    Count,
    GeneralSettings,
    Lifetime,
    is_deployed,
)


class AccountSettings(GeneralSettings, title="Accounts"):
    registration_open: bool = Field(default=True, description="Whether anybody may sign up.")
    email_verification_required: bool = Field(
        default=False,
        description="Whether users must verify their address before they can sign in. Sign-up then answers the same for"
        " new and taken addresses. Sign-in before the verification answers as for a wrong password. If one address has"
        " several sign-ups, only the one whose code and password are confirmed becomes the account.",
    )
    account_pages_url: WebUrl | None = Field(
        default=None,
        description="URL of your application's account pages; e-mails link to them as `/verify-email#token=...`."
        " Unset: e-mails link to the pages of this service if it has any, and otherwise show a code to enter.",
    )
    access_token_lifetime_seconds: Lifetime = Field(default=15 * 60, description="Lifetime of an access token.")
    refresh_token_lifetime_seconds: Lifetime = Field(
        default=30 * DAY_SECONDS,
        description="Lifetime of a refresh token: a session ends if it is not refreshed for this long.",
    )
    session_max_lifetime_seconds: Lifetime | None = Field(
        default=None,
        description="Longest lifetime of a session, however often it is refreshed. Existing sessions get a new value at"
        " their next refresh. Unset: no limit.",
    )
    refresh_reuse_grace_seconds: int = Field(
        default=5,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long a used refresh token may be used again. A later use counts as theft, and ends the"
        " session.",
    )
    auth_cache_seconds: float = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long a worker may use cached data of the caller for a `GET` request. 0: each request checks in"
        " the database that the session and the account still exist.",
    )
    max_sessions_per_user: Count = Field(
        default=20,
        description="Maximum number of sessions of one user. A further sign-in ends the least recently used one.",
    )
    max_rows_per_user: int = Field(
        default=10_000,
        ge=0,
        le=MAX_COUNT,
        description="Maximum number of items of each kind that one user may store; a further one gets a 409. Deleted"
        " files count for another day. 0: no limit.",
    )
    admin_second_factor_required: bool = Field(
        default=False,
        description="Whether only administrators with a second factor get the scope `admin`. Other sessions lose the"
        " scope at the next refresh or change of the password.",
    )
    throttling: bool = Field(
        default=True,
        description="Whether sign-ins and other guesses are rate-limited, across all workers and hosts.",
    )
    throttle_account_attempts: Count = Field(
        default=5,
        description="Number of attempts at one account without a delay. With each further attempt, the delay doubles.",
    )
    throttle_address_attempts: Count = Field(
        default=50,
        description="Number of attempts and sign-ups, over all accounts, that one client address may make without a"
        " delay.",
    )
    throttle_account_changes: Count = Field(
        default=100,
        description="Number of profile changes, and of confirmations, that one account may make without a delay.",
    )
    throttle_max_delay_seconds: Lifetime = Field(default=15 * 60, description="Longest delay between two attempts.")
    throttle_memory_seconds: Lifetime = Field(
        default=3600,
        description="Counters are reset after this long without attempts.",
    )
    audit_log_lifetime_seconds: int = Field(
        default=365 * DAY_SECONDS,
        # At least a day: triggers in the database refuse to delete events of the last 23 hours.
        ge=DAY_SECONDS,
        le=10 * MAX_LIFETIME_SECONDS,
        description="Security events older than this are deleted.",
    )
    purge_interval_seconds: int = Field(
        default=3600,
        ge=0,
        le=MAX_LIFETIME_SECONDS,
        description="Interval at which each worker deletes expired data. 0: only `python -m app purge` does.",
    )

    @field_validator("email_verification_required")
    @classmethod
    def require_mail_server(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("smtp_host") and is_deployed(info):
            raise ValueError("needs a mail server: set SMTP_HOST")
        return value
