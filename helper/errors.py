"""How a program ends that cannot go on: each error is one line for the user, and has an exit code."""


class UserError(Exception):
    """Bad input: names the option or file, what was found, what was expected and what to do."""

    exit_code = 2


class RunStopped(UserError):
    """A run that cannot continue for a reason of its own, such as a non-finite loss or a full disk."""

    exit_code = 1


class Interrupted(UserError):
    """Ctrl-C or a termination request, after the state was saved."""

    exit_code = 130
