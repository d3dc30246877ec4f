"""Launcher for a clone: `python cli.py run date/table5`. The command line itself is detbench/cli/."""

from detbench.cli import main

if __name__ == "__main__":
    main()
