"""The errors that commands report as one line."""


class UserError(Exception):
    """A mistake of the user: the message says what is wrong and what to do. Exit code 2."""


class VerificationError(Exception):
    """A result failed its verification; the message contains the measured value. Exit code 1."""
