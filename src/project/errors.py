"""What can go wrong by no fault of the code, each kind with an exit code of its own: told in one line."""


class InputError(ValueError):
    """Wrong input (a key, a value, a file). The message names it, what is allowed and the remedy.

    Raise it wherever a user's mistake is found; `project.command_line.run` prints it and ends with
    `exit_code`.
    """

    exit_code = 2


class DataError(InputError):
    """Files of a data set are missing or damaged. The message names them and the remedy."""

    exit_code = 3


class NonFiniteError(RuntimeError):
    """The loss is no number any more. The message names the step and what led there."""

    exit_code = 4


TOLD = (InputError.exit_code, DataError.exit_code, NonFiniteError.exit_code)
"""Exit codes of processes that have told in one line what went wrong."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, without what Hydra and OmegaConf append to it."""
    kept = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.strip().startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(kept) or type(error).__name__
