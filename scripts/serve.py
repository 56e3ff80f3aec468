"""Serve trained image classifiers over HTTP: `python scripts/serve.py run=last`."""

from project.commands import serve

if __name__ == "__main__":
    serve()
