"""`python -m detbench` is the command line."""

from detbench.cli import main

main()
