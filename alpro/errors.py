"""Errors that every part of the project raises."""

from alpro.credentials import without_credentials


class InputError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do. It is shown
    without a traceback and without the credentials of URLs in it."""

    def __init__(self, message: str = ""):
        super().__init__(without_credentials(message))
