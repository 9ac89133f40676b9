"""One harness with atheris, in this process: `python -m tests.fuzz.fuzzer NAME [what libFuzzer takes]`."""

from __future__ import annotations

import logging
import sys

import atheris

# What is to be covered, before anything else imports it; and the harnesses, which tell the fuzzer how far its script
# was followed. pydantic is compiled, and asyncio is not ours.
with atheris.instrument_imports(include=["actors.guest", "actors.machines", "actors.visits", "tests.fuzz"]):
    from tests.fuzz.harnesses import HARNESSES


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    name, *options = sys.argv[1:]
    logging.disable()  # asyncio tells of each connection that breaks
    atheris.Setup([sys.argv[0], *options], HARNESSES[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
