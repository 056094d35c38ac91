"""Errors that every part of the project raises."""


class InputError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do. It is shown
    without a traceback."""
