"""What a template is made from: the words after `--from`.

| words | what |
| --- | --- |
| `debian` | packages of this machine's own distribution, by mmdebstrap |
| `template:NAME` | another template |
| `rootfs:DIR` | a folder that holds a root file system |
| `tarball:FILE` | the same in a tar archive, compressed or not |
| `oci:DIR[:TAG]` | an image, in a folder of the OCI layout |
| `oci-archive:FILE[:TAG]` | the same in a tar archive |
| `docker-archive:FILE[:NAME]` | what `docker save` and `podman save` write |
| `docker://NAME[:TAG]` | an image of a registry; copied by skopeo, which must be installed |
| `docker-daemon:NAME:TAG`, `containers-storage:NAME` | an image that Docker or Podman has here; by skopeo, too |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from actors.template.manifest import NAME, TemplateError

BY_SKOPEO = ("docker://", "docker-daemon:", "containers-storage:")
KINDS = ("debian", "template", "rootfs", "tarball", "oci", "oci-archive", "docker-archive")
_WITH_TAG = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a template is made from."""

    kind: str
    """One of `KINDS`, or "skopeo"."""
    place: str
    """A template's name, an absolute path, or what skopeo is to copy."""
    tag: str = ""
    """Of an image; "" where the one that is there is meant."""

    def __str__(self) -> str:
        if self.kind in ("debian", "skopeo"):
            return self.place or self.kind
        return f"{self.kind}:{self.place}" + (f":{self.tag}" if self.tag else "")


def parse_origin(text: str) -> Origin:
    """Understand what stands after `--from`; relative paths are taken from the working directory.

    Raises `TemplateError` for what is none, or is not there.
    """
    if text == "debian":
        return Origin("debian", "")
    if text.startswith(BY_SKOPEO):
        if not text.isprintable() or " " in text or text in BY_SKOPEO:
            raise TemplateError(f"{text!r} names no image; say for example docker://docker.io/library/debian:12-slim")
        return Origin("skopeo", text)
    kind, colon, place = text.partition(":")
    if kind not in KINDS or not colon or not place:
        known = ", ".join((*KINDS[:1], *(f"{one}:…" for one in KINDS[1:]), *(f"{one}…" for one in BY_SKOPEO)))
        raise TemplateError(f"{text!r} is nothing that a template can be made from; there are {known}")
    if kind == "template":
        if not re.fullmatch(NAME, place):
            raise TemplateError(f"{place!r} can't name a template: 1 to 40 of a-z, 0-9 and '-'")
        return Origin(kind, place)
    path, tag = _split_tag(place) if kind in _WITH_TAG else (place, "")
    found = Path(path).expanduser().absolute()
    wanted = "folder" if kind in ("rootfs", "oci") else "file"
    if not (found.is_dir() if wanted == "folder" else found.is_file()):
        raise TemplateError(f"there is no {wanted} {found}, which {kind}:{place} names; correct the path")
    return Origin(kind, str(found), tag)


def _split_tag(place: str) -> tuple[str, str]:
    """`path[:tag]`, where a path that is there as it stands has no tag, whatever colons it has."""
    if Path(place).expanduser().exists():
        return place, ""
    # A name as `docker save` writes it has a colon of its own: the path ends at the first one that makes it exist.
    for colon in re.finditer(":", place):
        if Path(place[: colon.start()]).expanduser().exists():
            return place[: colon.start()], place[colon.end() :]
    return place, ""
