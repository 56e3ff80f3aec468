"""Write a repository of your own: `python scripts/new.py wind_forecast`."""

from project.commands import new

if __name__ == "__main__":
    new()
