"""Errors that users cause and solve, each kind with an exit code; reported on one line."""

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
    """The loss is NaN or infinite. The message names the step and the cause."""

    exit_code = 4


ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
"""Escape sequences of terminals."""
SENTENCES = re.compile(r"(?<=[.!?:])(?=\s)|(?=\n)")
DEBUG_ADVICE = re.compile(
    r"`weights_only|weights_only=False|can still be loaded|if you (got|trust)|safe_globals\(\["
    r"|documentation of torch\.load|file an issue|turn off|warn_only|suppress_errors"
    r"|\b(TORCH|PYTORCH|CUDA|NCCL)\w*\s?=\s?[\"']?\w|TORCH_USE_CUDA_DSA|TORCH_LOGS"
)
"""Marks of sentences that tell how to switch off checks or debug torch itself."""
MAX_REASON_LENGTH = 300
"""Characters of a library's message that are kept."""


def strip_library_text(text: str) -> str:
    """Return a library's text without escape sequences and without advice for its developers."""
    return "".join(part for part in SENTENCES.split(ESCAPES.sub("", text)) if not DEBUG_ADVICE.search(part))


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, without the keys that OmegaConf appends."""
    kept = [
        line.strip()
        for line in strip_library_text(str(error)).splitlines()
        if line.strip() and not line.strip().startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(kept) or type(error).__name__


def summarize(error: BaseException) -> str:
    """Return a library's message on one line of at most `LONGEST_REASON` characters."""
    text = one_line(error)
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]}…"
