"""`python -m events`: the `hourglass` command, where it is not on the PATH."""

from __future__ import annotations

from events.cli import main

if __name__ == "__main__":
    main()
