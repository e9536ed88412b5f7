"""The two ways a command may end badly."""


class UserError(Exception):
    """A mistake the user can mend: one line that says what is wrong and what to do. Exit code 2."""


class VerificationError(Exception):
    """What was made is not what was asked for; the message names the figure. Exit code 1."""
