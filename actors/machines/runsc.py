"""`runsc`, the program that makes gVisor machines: where it is, whether it will do, how it is called."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from actors.machines.protocol import MachineUnavailable

OLDEST_RELEASE = 20240729
"""The oldest release that is known to work. 20221219 (Debian 12 without backports) hangs on `checkpoint`."""
INSTALL_HINT = "install it with `make setup`, which takes it from the distribution (on Debian 12, from its backports)"
_VERSION_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Runsc:
    """A `runsc` that will do."""

    path: str
    release: int
    """The day of the release, as a number: 20240729."""

    def command(self, state: Path, *arguments: str) -> list[str]:
        """The command line of a subcommand, with the flags that every machine of ours needs.

        No network card enters a machine, and raw sockets on its loopback are for the guest agent's packet filter alone;
        systrap needs no KVM; no overlay, since the file tree is a snapshot already and an overlay would put every
        changed file in memory.
        """
        flags = ("--network=none", "--net-raw", "--platform=systrap", "--overlay2=none")
        return [self.path, "--root", str(state), *flags, *arguments]


def find_runsc(path: str | None = None) -> Runsc:
    """The `runsc` at `path`, else on PATH. Raises `MachineUnavailable` where there is none, or it is too old."""
    found = shutil.which(path or "runsc")
    if found is None:
        raise MachineUnavailable(f"there is no {path or 'runsc'}, which makes gVisor machines; {INSTALL_HINT}")
    try:
        # The output is the program's own: bounded by nothing but trust in it, as with any other program of the system.
        said = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineUnavailable(f"{found} --version failed ({error}); {INSTALL_HINT}") from error
    release = parse_release(said.stdout)
    if release is None:
        first = said.stdout.strip().partition("\n")[0][:100]
        raise MachineUnavailable(f"{found} does not tell its release (it said {first!r}); {INSTALL_HINT}")
    if release < OLDEST_RELEASE:
        raise MachineUnavailable(
            f"{found} is release {release}, older than {OLDEST_RELEASE}: it can hang for ever; {INSTALL_HINT}"
        )
    return Runsc(found, release)


def parse_release(text: str) -> int | None:
    """The release in what `runsc --version` says: `release-20240729.0` (upstream's), `0.0~20240729.0` (Debian's)."""
    match = re.match(r"runsc version (?:release-|0\.0~)(20\d{6})\b", text)
    return int(match.group(1)) if match else None
