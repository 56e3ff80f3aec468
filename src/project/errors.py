"""Errors that users can solve, each with an exit code, and the text of libraries' errors on one line."""

import re


class InputError(ValueError):
    """Wrong input: a key, a value or a file. The message names the input, the allowed values and the remedy.

    Raised wherever a user's mistake is found; `project.config.cli.run` prints the message and exits with
    `exit_code`.
    """

    exit_code = 2


class DataError(InputError):
    """Missing or damaged files of a data set. The message names the files and the remedy."""

    exit_code = 3


class NonFiniteError(RuntimeError):
    """NaN or infinite loss or weights. The message names the step and the cause."""

    exit_code = 4


ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
"""Escape sequences of terminals."""
SENTENCES = re.compile(r"(?<=[.!?:])(?=\s)|(?=\n)")
DEBUG_ADVICE = re.compile(
    r"`weights_only|weights_only=False|can still be loaded|if you (got|trust)|safe_globals\(\["
    r"|documentation of torch\.load|file an issue|turn off|warn_only|suppress_errors"
    r"|\b(TORCH|PYTORCH|CUDA|NCCL)\w*\s?=\s?[\"']?\w|TORCH_USE_CUDA_DSA|TORCH_LOGS"
)
"""Patterns in sentences about switching off checks or debugging torch itself."""
MAX_REASON_LENGTH = 300
"""Longest message of a library that is shown in full [characters]."""


def strip_library_text(text: str) -> str:
    """Remove escape sequences and advice for developers from a library's message."""
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
