from enum import StrEnum


class AccountEvent(StrEnum):
    """Audit events of accounts."""

    SIGN_UP_REFUSED = "sign-up.refused"
    USER_CREATED = "user.created"
    USER_CHANGED = "user.changed"
    USER_DELETED = "user.deleted"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105  # a name
    PASSWORD_REFUSED = "password.refused"  # noqa: S105  # a name
    PASSWORD_RESET = "password.reset"  # noqa: S105  # a name
    EMAIL_VERIFIED = "email.verified"
    EMAIL_CHANGE_REQUESTED = "email.change-requested"
    EMAIL_CHANGED = "email.changed"
    SIGNED_IN = "sign-in.succeeded"
    SIGN_IN_FAILED = "sign-in.failed"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    REFRESH_TOKEN_REUSED = "refresh-token.reused"  # noqa: S105  # a name
    SECOND_FACTOR_ENABLED = "second-factor.enabled"
    SECOND_FACTOR_DISABLED = "second-factor.disabled"
    SECOND_FACTOR_MISSING = "second-factor.missing"
    SECOND_FACTOR_REFUSED = "second-factor.refused"
    RECOVERY_CODE_USED = "recovery-code.used"
    PASSKEY_ADDED = "passkey.added"
    PASSKEY_REMOVED = "passkey.removed"
    PASSKEY_COPIED = "passkey.copied"
