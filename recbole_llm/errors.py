"""What can go wrong for a user, each with a message of one line that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecboleLLMError(Exception):
    """Base of the errors that a user can mend; the commands print the message alone."""


class SettingsError(RecboleLLMError):
    """A setting is unknown, or its value is not allowed."""


class DataError(RecboleLLMError):
    """A data file lacks something, or holds a value that cannot be used."""


class FitError(RecboleLLMError):
    """A signal could not be learned with the settings given."""


class DataWarning(UserWarning):
    """Something in the data is worth a line, and the work goes on."""


def one_line(error: BaseException) -> str:
    """What a library's error says, without line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message: ``"; did you mean `x`?"``, or nothing.

    Args:
        name: what the user gave.
        known: the names that are allowed.

    Returns:
        The nearest known name as a half sentence, empty where none is near.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""
