"""`python -m project COMMAND`, as in `python -m project train model=cnn`."""

from project.commands import main

main()
