"""The last hand on a root that is not ours, and the look into it: by booting it, never by running it on the host."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.guest.defaults import BYTES_MAX
from actors.template.contents import PROGRAMS
from actors.template.manifest import StepFailed, TemplateError
from actors.template.rooted import BadPath, Rooted

if TYPE_CHECKING:
    from pathlib import Path

    from actors.template.workshop import Workshop

DEFAULTS = "etc/hourglass/defaults.json"
"""Read by `actors.guest.defaults`."""
HOSTS = "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost\n"
"""A machine has no network: its own name is all there is to resolve."""
_LOOK_SECONDS = 60.0
_LINE = "@@hourglass@@"
_VERSION_MAX = 40
_PACKAGES = """
if command -v dpkg-query >/dev/null; then dpkg-query --show --showformat='${Package}\\t${Version}\\n'
elif command -v apk >/dev/null; then apk info -v | sed -E 's/-([0-9][^-]*-r[0-9]+)$/\\t\\1/'
elif command -v rpm >/dev/null; then rpm -qa --queryformat '%{NAME}\\t%{VERSION}-%{RELEASE}\\n'
fi 2>/dev/null
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a root says of itself when it runs. Untrusted, for display: bounded, and of the right shape."""

    distribution: str
    suite: str
    programs: dict[str, str]
    packages: dict[str, str]


def prepare_root(root: Path) -> None:
    """Give a foreign root what every sandbox has. Raises `TemplateError`, `OSError`."""
    try:
        with Rooted(root) as inside:
            for folder, mode in (("workspace", 0o755), ("root", 0o700)):
                if not inside.is_folder(folder):
                    inside.make_folder(folder, mode=mode)
            for path, text in (("etc/hosts", HOSTS), ("etc/hostname", "sandbox\n")):
                if inside.is_empty_file(path):
                    inside.write(path, text.encode())
            # Each sandbox is to be itself.
            inside.write("etc/machine-id", b"")
    except BadPath as error:
        raise TemplateError(f"the root can't be made ready: {error}") from None


def write_defaults(root: Path, env: dict[str, str], workdir: str) -> None:
    """Put into a root what its sandboxes' programs begin with.

    Raises `TemplateError` where it is more than the guest would read.
    """
    told = json.dumps({"env": env, "workdir": workdir}, indent=1).encode()
    if len(told) > BYTES_MAX:
        raise TemplateError(
            f"the variables of image and steps take {len(told):,} bytes as JSON, and {BYTES_MAX:,} are the most; "
            "set fewer, or put them into a file that the shell reads"
        )
    with Rooted(root) as inside:
        inside.write(DEFAULTS, told)


def inspect(shop: Workshop, root: Path) -> Found:
    """Boot the root with its own agent, and ask. Raises `TemplateError` where it does not come up or has no shell."""
    # The longest first: what is printed is cut at its beginning.
    parts = [_PACKAGES, "cat /etc/os-release 2>/dev/null"]
    parts += [f'said=$({shlex.join(command)} 2>&1); echo "${{said:0:400}}"' for command in PROGRAMS.values()]
    # The tools' own shell has the names of all programs; nothing but bash itself need be there.
    script = f"\necho; echo {_LINE}\n".join(parts) + "\n:"
    try:
        said = shop.run(root, root, script, seconds=_LOOK_SECONDS)
    except StepFailed as error:
        raise TemplateError(
            f"the template comes up, but its shell does not answer: {error}; {error.output[-500:]}"
        ) from None
    packages, release, *answers = (said.split(_LINE) + [""] * len(parts))[: len(parts)]
    fields = dict(line.split("=", 1) for line in release.splitlines() if re.fullmatch(r"[A-Z_]+=.*", line))
    return Found(
        distribution=_short(fields.get("PRETTY_NAME", "")) or "unknown",
        suite=_short(fields.get("VERSION_CODENAME", "")),
        programs=dict(_programs(answers)),
        packages=dict(sorted(re.findall(r"^([\w.+-]{1,100})\t(\S{1,100})$", packages, re.MULTILINE | re.ASCII))),
    )


def _programs(answers: list[str]) -> list[tuple[str, str]]:
    found = []
    for name, said in zip(PROGRAMS, answers, strict=True):
        version = re.search(r"\d+(\.\d+)+", said)
        if version is not None and "not found" not in said and len(version.group()) <= _VERSION_MAX:
            found.append((name, version.group()))
    return found


def _short(text: str) -> str:
    return "".join(char for char in text.strip().strip("\"'") if char.isprintable())[:100]
