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
    registration_open: bool = Field(
        default=True, description="Whether anybody may sign up. `false`: sign-up is refused with a 403."
    )
    email_verification_required: bool = Field(
        default=False,
        description="Whether users must verify their e-mail address before they can sign in. Sign-up then gives the"
        " same answer for new and taken addresses, and sign-in before the verification gives the answer for a wrong"
        " password. If several people sign up with one address, the account goes to the sign-up whose code and password"
        " are confirmed first.",
    )
    account_pages_url: WebUrl | None = Field(
        default=None,
        description="URL of the account pages of your own front end; e-mails link to its paths, such as"
        " `/verify-email#token=...`. Unset: e-mails link to the pages of this service if it has any; otherwise, e-mails"
        " contain a code that the user enters.",
    )
    access_token_lifetime_seconds: Lifetime = Field(default=15 * 60, description="Lifetime of an access token.")
    refresh_token_lifetime_seconds: Lifetime = Field(
        default=30 * DAY_SECONDS,
        description="Lifetime of a refresh token: a session ends if it is not refreshed for this long.",
    )
    session_max_lifetime_seconds: Lifetime | None = Field(
        default=None,
        description="Longest lifetime of a session, however often it is refreshed. A changed value applies to an"
        " existing session from its next refresh. Unset: no limit.",
    )
    refresh_reuse_grace_seconds: int = Field(
        default=5,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long after the use of a refresh token a second use is refused without ending the session,"
        " because a client may have lost the response. A later use counts as theft, and ends the session.",
    )
    auth_cache_seconds: float = Field(
        default=0,
        ge=0,
        le=MAX_WAIT_SECONDS,
        description="How long a worker may answer `GET` requests of the API from a cached copy of the caller's session"
        " and account; an ended session can still read for this time. 0: each request checks in the database that the"
        " session and the account still exist.",
    )
    max_sessions_per_user: Count = Field(
        default=20,
        description="Maximum number of sessions of one user. A sign-in beyond the maximum ends the user's least"
        " recently used session.",
    )
    max_rows_per_user: int = Field(
        default=10_000,
        ge=0,
        le=MAX_COUNT,
        description="Maximum number of items of each kind (such as files) that one user may store. A request that would"
        " create an item beyond the maximum gets a 409. A deleted file still counts for a day. 0: no limit.",
    )
    admin_second_factor_required: bool = Field(
        default=False,
        description="Whether administrators need a second factor to get the scope `admin`. Existing sessions of"
        " administrators without a second factor lose the scope at their next refresh or change of the password.",
    )
    throttling: bool = Field(
        default=True,
        description="Whether the service limits attempts at passwords and codes, sign-ups, requests for e-mails, and"
        " changes of an account, counted across all workers and hosts. Beyond a limit, the client must wait between"
        " attempts: an attempt during this delay gets a 429.",
    )
    throttle_account_attempts: Count = Field(
        default=5,
        description="Number of attempts at the password or a code of one account without a delay; each attempt beyond"
        " it doubles the delay. The same limit applies to e-mails of each kind to one address.",
    )
    throttle_address_attempts: Count = Field(
        default=50,
        description="Number of attempts over all accounts that one IPv4 address or IPv6 /64 network may make without a"
        " delay; each attempt beyond it doubles the delay. Sign-ups and requests for e-mails are counted separately,"
        " each with the same limit.",
    )
    throttle_account_changes: Count = Field(
        default=100,
        description="Number of changes of its profile that one account may make without a delay; each change beyond it"
        " doubles the delay. Changes that the user confirms with the password are counted separately, with the same"
        " limit.",
    )
    throttle_max_delay_seconds: Lifetime = Field(
        default=15 * 60, description="Longest delay between two attempts; at this value, the delay stops doubling."
    )
    throttle_memory_seconds: Lifetime = Field(
        default=3600,
        description="Time without attempts after which a counter of attempts is reset.",
    )
    audit_log_lifetime_seconds: int = Field(
        default=365 * DAY_SECONDS,
        # At least a day: triggers in the database refuse to delete events of the last 23 hours.
        ge=DAY_SECONDS,
        le=10 * MAX_LIFETIME_SECONDS,
        description="How long security events are kept in the audit log; older events are deleted.",
    )
    purge_interval_seconds: int = Field(
        default=3600,
        ge=0,
        le=MAX_LIFETIME_SECONDS,
        description="Interval at which each worker deletes expired data. 0: workers delete none, so run `python -m app"
        " purge` regularly.",
    )

    @field_validator("email_verification_required")
    @classmethod
    def require_mail_server(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("smtp_host") and is_deployed(info):
            raise ValueError("needs a mail server: set SMTP_HOST")
        return value
