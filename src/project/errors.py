"""Mistakes in what the user gave: shown as one line, without a traceback."""


class InputError(ValueError):
    """Wrong input (a key, a value, a file). The message names it, what is allowed and the remedy.

    Raise it wherever a user's mistake is found; `project.command_line.run` prints it and ends with
    `exit_code`.
    """

    exit_code = 2


def one_line(error: BaseException) -> str:
    """An error's message on one line, without what Hydra and OmegaConf append to it."""
    kept = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.strip().startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(kept) or type(error).__name__
