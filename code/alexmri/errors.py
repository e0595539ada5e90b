"""The error alexmri raises on purpose, and words that its sentences share."""

import difflib
from collections.abc import Collection


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what was found, where, and what to change.

    The command line prints it without a traceback and exits with 2.
    """


def did_you_mean(typed: str, known: Collection[str]) -> str:
    """Return a question with the nearest of the names that are `known`, or nothing."""
    likely = difflib.get_close_matches(typed, known, n=1, cutoff=0.72)
    begun = [name for name in known if len(typed) > 3 and name.startswith(typed)]
    return "".join(f"; did you mean '{name}'?" for name in (likely or begun)[:1])


def option(setting: str, value: str | None = None) -> str:
    """Write a setting for both kinds of readers: "on_bad_image to skip (--on-bad-image skip)".

    A job has hyperparameters, a terminal has options.
    """
    end = f" {value}" if value else ""
    to = f" to {value}" if value else ""
    return f"{setting}{to} (--{setting.replace('_', '-')}{end})"
