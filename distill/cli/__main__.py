"""`python -m distill.cli` is `distill`."""

from distill.cli.app import main

main()
