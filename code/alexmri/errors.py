"""The error alexmri raises on purpose."""


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what was found, where, and what to change.

    The command line prints it without a traceback and exits with 2.
    """


def option(setting: str, value: str | None = None) -> str:
    """Write a setting for both kinds of readers: "on_bad_image to skip (--on-bad-image skip)".

    A job has hyperparameters, a terminal has options.
    """
    end = f" {value}" if value else ""
    to = f" to {value}" if value else ""
    return f"{setting}{to} (--{setting.replace('_', '-')}{end})"
