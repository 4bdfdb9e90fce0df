"""`python -m backfire` is the `backfire` command."""

from backfire.cli import main

main()
