"""What can go wrong by no fault of the code, each kind with an exit code of its own: told in one line."""

import re


class InputError(ValueError):
    """Wrong input (a key, a value, a file). The message names it, what is allowed and the remedy.

    Raise it wherever a user's mistake is found; `project.config.cli.run` prints it and ends with
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


ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
"""Escape sequences, which move or colour a terminal's text."""
SENTENCES = re.compile(r"(?<=[.!?:])(?=\s)|(?=\n)")
ADVICE = re.compile(
    r"`weights_only|weights_only=False|can still be loaded|if you (got|trust)|safe_globals\(\["
    r"|documentation of torch\.load|file an issue|turn off|warn_only|suppress_errors"
    r"|\b(TORCH|PYTORCH|CUDA|NCCL)\w*\s?=\s?[\"']?\w|TORCH_USE_CUDA_DSA|TORCH_LOGS"
)
"""In a sentence that tells how to switch a check off, or how torch's own developers look for faults."""
LONGEST_REASON = 300
"""Characters of what a library says of an error."""


def plain(text: str) -> str:
    """Give a library's text without what colours it, and without advice that is none for a user of ours."""
    return "".join(part for part in SENTENCES.split(ESCAPES.sub("", text)) if not ADVICE.search(part))


def one_line(error: BaseException) -> str:
    """An error's message as plain text on one line, without what Hydra and OmegaConf append to it."""
    kept = [
        line.strip()
        for line in plain(str(error)).splitlines()
        if line.strip() and not line.strip().startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(kept) or type(error).__name__


def summarize(error: BaseException) -> str:
    """Give a library's message on one line that is not too long."""
    text = one_line(error)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
