"""Why a verb ends with a sentence and exit code 1; here so that telling of it needs no database and no gateway."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """The verb cannot do what it was asked; the message is a whole sentence, the exit code is 1."""


class StoreError(Exception):
    """The store cannot be used; the message is a sentence for the operator."""
