"""Where this machine gets its packages from, so that the template gets its own from there too.

Asked of apt itself, which knows one-line lists and deb822 files alike. No address is known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from actors.machines.mounts import CommandFailed, run
from actors.template.manifest import TemplateError

_FIELDS = ("REPO_URI", "RELEASE", "COMPONENT", "ARCHITECTURE", "ORIGIN")
_KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
_ORIGINS = {"debian": "Debian", "ubuntu": "Ubuntu"}


@dataclass(frozen=True, slots=True)
class Sources:
    """The distribution's own package sources, as this machine uses them."""

    suite: str
    lines: list[str]
    """One-line sources, for mmdebstrap's standard input."""
    apt_options: list[str]
    """Proxies that apt is told of, as lines of apt's configuration."""


def read_os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """The fields of an os-release file; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip().strip("\"'") for name, _, value in pairs}


def machine_sources() -> Sources:
    """The sources of this machine's distribution. Raises `TemplateError` where apt knows of none."""
    release = read_os_release()
    distribution, suite = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    if distribution not in _ORIGINS or not suite:
        raise TemplateError(
            f"this machine is {release.get('PRETTY_NAME', 'of an unknown kind')}, and templates are made from the "
            "packages of a Debian or Ubuntu release; build on one"
        )
    try:
        listing = run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "|".join(f"$({field})" for field in _FIELDS),
                "Created-By: Packages",
            ]
        )
        settings = run(["apt-config", "dump"])
    except CommandFailed as error:
        raise TemplateError(f"apt can't be asked for its sources: {error}") from error
    lines = source_lines(listing, suite, _ORIGINS[distribution], Path(_KEYRINGS[distribution]))
    if not lines:
        raise TemplateError(f"apt knows of no source of {_ORIGINS[distribution]} {suite}; run `apt-get update` first")
    proxies = re.findall(
        r'^Acquire::(?:https?|ftp)::Proxy(?:-Auto-Detect)? ".*";$', settings, re.MULTILINE | re.IGNORECASE
    )
    return Sources(suite, lines, proxies)


def source_lines(listing: str, suite: str, origin: str, keyring: Path) -> list[str]:
    """The sources in what apt lists, that are the distribution's own and of this release, without its backports."""
    components: dict[tuple[str, str], list[str]] = {}
    for row in listing.splitlines():
        uri, release, component, _, of = (row.split("|") + [""] * len(_FIELDS))[: len(_FIELDS)]
        ours = release == suite or release in {f"{suite}-updates", f"{suite}-security"}
        if of == origin and ours:
            known = components.setdefault((uri, release), [])
            if component not in known:
                known.append(component)
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    return [f"deb {signed}{uri} {release} {' '.join(names)}" for (uri, release), names in components.items()]
