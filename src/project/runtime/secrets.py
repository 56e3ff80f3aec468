"""Secrets, redacted in run folders, sweep records, logs and on the screen.

A secret is the value of a key with a secret's name (`api_key`, `password`), a password in a URL, or the value
of an environment variable with such a name in the configuration (`${oc.env:WANDB_API_KEY}`). Values are
redacted below their keys and, from `MIN_LENGTH` characters on, wherever they occur as a word. References are
written unchanged: a resumed run reads the secret from the environment again.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

REDACTED = "REDACTED"
"""Replacement of a secret; a plain word in YAML, in overrides and in URLs."""

SECRET_WORDS = frozenset(
    {
        *("password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets"),
        *("credential", "credentials", "apikey", "accesskey"),
    }
)
"""Words that make a key secret at any position in its name."""
SECRET_LAST_WORDS = frozenset({"auth", "pat"})
"""Words that make a key secret as its last word."""
SERVICE_SECRET_WORDS = frozenset({"key", "token"})
"""Words that make a key secret as its last word, if one of `SERVICES` comes before."""
SERVICES = frozenset(
    {
        *("api", "access", "secret", "private", "auth", "signing", "encryption", "license", "licence"),
        *("bearer", "refresh", "session", "client", "account", "ssh", "deploy", "master", "login", "bot"),
        *("wandb", "hf", "hub", "face", "github", "gitlab", "neptune", "comet", "mlflow", "clearml"),
        *("kaggle", "openai", "anthropic", "aws", "azure", "gcp", "google", "slack", "telegram"),
    }
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""Word of a name in snake_case, kebab-case or camelCase."""

MIN_LENGTH = 8
"""Least length of a value that is redacted in any text [characters]; shorter ones are common words."""
MIN_PASSWORD_LENGTH = 4
"""Least length for a key with one of `SECRET_WORDS`, unless the value is a number [characters]."""
PUBLIC_VALUES = ("", "null", "none", "true", "false", REDACTED.lower())
"""Values that are never secret."""

_PART = r"""(?:'[^']*'|"[^"]*"|\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|[^\s,;:&'"{}\[\]()]|:(?!\s))+"""
VALUE = re.compile(rf"""{_PART}(?:,(?![\w.'"]+\s*[:=]){_PART})*""")
"""Value of a key in an override or a mapping, with its brackets."""
KEY = re.compile(r"""(?<![\w.@/-])[\w.@/-]+=|(?<=[{,])\s*['"]?\w+['"]?\s*:\s*""")
URL_PASSWORD = re.compile(r"""(?<=[\w+.-])(://[^\s:/?#@'"]*):(?!\$\{)([^\s/?#'"]+)@""")

NOT_RECORDED = "is secret and was not recorded; set it again, as in '{key}=${{oc.env:NAME}}'"

_known_secrets: dict[str, None] = {}
"""Secrets that this process has read, in order."""


@lru_cache(10_000)
def is_secret(key: str) -> bool:
    """Return True if the last part of a dotted key, or a variable, is a secret's name."""
    words = _words(key)
    if not words or not SECRET_WORDS.isdisjoint(words):
        return bool(words)
    named = words[-1] in SERVICE_SECRET_WORDS and not SERVICES.isdisjoint(words[:-1])
    return words[-1] in SECRET_LAST_WORDS or words == ["token"] or named


def _words(key: str) -> list[str]:
    return [word.lower() for word in WORD.findall(key.rpartition(".")[2])]


def is_public(value: Any) -> bool:
    """Return True for a value that is never secret: null, a boolean or a reference."""
    return (
        value is None or isinstance(value, bool) or str(value).lower() in PUBLIC_VALUES or "${" in str(value)
    )


def find_secrets(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the secrets among plain values with their keys; all values below a secret `key` are secret."""
    if isinstance(values, Mapping):
        for name, child in values.items():
            yield from find_secrets(child, str(name) if is_secret(str(name)) else key)
    elif isinstance(values, list | tuple):
        for child in values:
            yield from find_secrets(child, key)
    elif key and not is_public(values):
        yield key, values


def remember(value: Any, key: str = "") -> None:
    """Remember a secret, to redact it in all text written later; short values are ignored."""
    text = str(value)
    password = not SECRET_WORDS.isdisjoint(_words(key)) and not text.isdecimal()
    if len(text) >= (MIN_PASSWORD_LENGTH if password else MIN_LENGTH) and not is_public(value):
        _known_secrets[text] = None


def remember_all(values: Any) -> None:
    """Remember all secrets of a configuration, plain or OmegaConf's, resolved or not."""
    for key, value in find_secrets(OmegaConf.to_container(values) if OmegaConf.is_config(values) else values):
        remember(value, key)


def redact(values: Any, *, secret: bool = False) -> Any:
    """Return plain values without secrets; below a `secret` key all values are redacted."""
    if isinstance(values, Mapping):
        return {
            name: child if name == "_target_" else redact(child, secret=secret or is_secret(str(name)))
            for name, child in values.items()
        }
    if isinstance(values, list | tuple):
        return [redact(child, secret=secret) for child in values]
    if secret and not is_public(values):
        return REDACTED
    return redact_text(values) if isinstance(values, str) else values


def redact_text(text: str) -> str:
    """Return a string (an override, a message, a URL) without secrets."""
    if _known_secrets:
        text = _pattern(frozenset(_known_secrets)).sub(lambda found: found[1] or REDACTED, text)
    if "://" in text:
        text = URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    return "".join(_redact_below_keys(text)) if "=" in text or "{" in text else text


@lru_cache(4)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    """Match the secrets as complete words, and class names, which are not redacted."""
    words = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    return re.compile(rf"""(_target_['"]?\s*[:=]\s*['"]?[\w.]+)|(?<!\w)(?:{words})(?!\w)""")


def _redact_below_keys(text: str) -> Iterator[str]:
    """Yield the pieces of a string with the values of secret keys redacted."""
    done = 0
    for key in KEY.finditer(text):
        if key.start() < done or not is_secret(key[0].strip("=: \t\n'\"")):
            continue
        value = VALUE.match(text, key.end())
        if value is not None and not is_public(value[0].strip("'\"")):
            yield text[done : key.end()] + REDACTED
            done = value.end()
    yield text[done:]


def resolve_env(key: str, *default: Any) -> str | None:
    """Resolve `oc.env`, and remember the value of a variable with a secret's name."""
    if key not in os.environ and not default:
        raise KeyError(f"Environment variable '{key}' not found")
    value = os.environ.get(key, *default)
    if value is not None and (is_secret(key) or not SERVICE_SECRET_WORDS.isdisjoint(_words(key)[-1:])):
        remember(value, key)
    return None if value is None else str(value)


def find_missing_secrets(config: DictConfig) -> Iterator[str]:
    """Yield a line for each redacted value of a recorded configuration."""
    plain: Any = OmegaConf.to_container(config)
    for group, values in plain.items():
        if group != "hydra" and isinstance(values, dict | list):
            yield from _missing(values, group)


def _missing(plain: Any, key: str) -> Iterator[str]:
    if isinstance(plain, Mapping):
        for name, child in plain.items():
            yield from _missing(child, f"{key}.{name}")
    elif isinstance(plain, list):
        for place, child in enumerate(plain):
            yield from _missing(child, f"{key}[{place}]")
    elif is_redacted(plain):
        yield f"{key}: {NOT_RECORDED.format(key=key)}"


def is_redacted(value: Any) -> bool:
    """Return True for a recorded value that was redacted."""
    return isinstance(value, str) and bool(re.search(rf"(^|[=:]\s*['\"]?){REDACTED}\b", value))


def restore(overrides: Iterable[str], given: Sequence[str]) -> list[str]:
    """Replace redacted overrides by those given again on the command line."""
    known = {redact_text(text): text for text in given}
    return [known.get(text, text) if is_redacted(text) else text for text in overrides]
