"""Errors that end an update with a sentence."""


class RefusalError(Exception):
    """The update cannot be done; the text says why and what to do. Nothing has been changed."""
