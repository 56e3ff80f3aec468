"""Health check of containers: `python -m project.inference.serve.health http://127.0.0.1:8000`.

The exit code is 0 if the server is ready, else 1. The token is that of the environment.
"""

import json
import os
import sys
import urllib.request

from project.inference.serve.options import TOKEN_VARIABLE

TIMEOUT_S = 4


def is_ready(url: str) -> bool:
    """Return True if the server at a URL answers requests for predictions."""
    request = urllib.request.Request(f"{url}/health")  # noqa: S310
    if token := os.environ.get(TOKEN_VARIABLE):
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.load(answer).get("ready") is True
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_ready(sys.argv[1]) else 1)
