"""The exception for a user's mistake in the data."""


class InputError(ValueError):
    """A user's mistake: one line that says what is wrong, where, and what to do.

    The command line prints the line and exits with code 2; nothing else is caught.
    """


class ChangedError(InputError):
    """A file is no longer what it was when its content named what is made from it."""
