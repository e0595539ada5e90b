"""The error alexmri raises on purpose."""


class UserError(Exception):
    """A mistake the user can mend: one sentence saying what was found, where, and what to change.

    The command line prints it without a traceback and exits with 2.
    """
