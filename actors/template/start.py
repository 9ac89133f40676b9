"""Where a template begins: an origin, opened and looked at, ready to be put into a new root."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from blake3 import blake3

from actors.machines.mounts import CommandFailed, run
from actors.template.layers import layer_key
from actors.template.manifest import BASE, TemplateError, load_manifest
from actors.template.oci import Digesting, architecture, open_image
from actors.template.origin import Origin
from actors.template.rooted import Rooted
from actors.template.unpack import decompressed, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actors.machines.volumes import Volumes
    from actors.template.oci import Image

    Fill = Callable[[str, Callable[[int], None]], Path]
    """Makes the root of that name, which is not there yet; the other hears how many bytes are unpacked."""

_COPY_SECONDS = 3600.0
_PIECE = 1024**2
_ROOM_BYTES = 1024**3
"""What is to be left on the disk."""
_DOWNLOAD = "image-"
_SYSTEM = {"bin", "dev", "etc", "home", "lib", "opt", "root", "sbin", "usr", "var"}


@dataclass(frozen=True, slots=True)
class Start:
    """What a build begins with."""

    key: str
    """Of the layer."""
    id: str
    """Which state of the origin it is, for people."""
    fill: Fill
    foreign: bool = True
    """Whether what a machine needs may be missing in it."""
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""


@contextlib.contextmanager
def open_start(volumes: Volumes, origin: Origin) -> Iterator[Start]:
    """Open an origin. Raises `TemplateError`, also from `Start.fill`; `OSError`."""
    if origin.kind == "skopeo":
        with _download(volumes.storage, origin) as place, open_image(place) as image:
            yield _image(volumes, image, origin)
    elif origin.kind in ("oci", "oci-archive", "docker-archive"):
        with open_image(origin) as image:
            yield _image(volumes, image, origin)
    elif origin.kind == "tarball":
        yield _tarball(volumes, Path(origin.place))
    elif origin.kind == "rootfs":
        yield _folder(volumes, Path(origin.place))
    else:
        yield _template(volumes, origin.place or BASE)


def _template(volumes: Volumes, name: str) -> Start:
    parent = load_manifest(volumes.templates, name)

    def fill(root_name: str, _: Callable[[int], None]) -> Path:
        return volumes.clone_root(parent.root, root_name)

    built = parent.built_at.isoformat()
    return Start(layer_key("template", name, built), built, fill, False, dict(parent.env), parent.workdir)


def _image(volumes: Volumes, image: Image, origin: Origin) -> Start:
    def fill(name: str, progress: Callable[[int], None]) -> Path:
        root = volumes.new_root(name)
        heard, done = _with_room(volumes.storage, progress), 0
        with Rooted(root) as inside:
            for number, layer in enumerate(image.layers, 1):
                what = f"layer {number} of {origin}"
                before = done
                with layer.open() as blob, io.BufferedReader(Digesting(blob)) as raw:
                    plain = Digesting(decompressed(raw))
                    found = unpack(
                        cast("IO[bytes]", plain),
                        inside,
                        whiteouts=True,
                        what=what,
                        progress=lambda count, before=before: heard(before + count),  # type: ignore[misc]
                    )
                    done += found.bytes
                    plain.check(layer.diff_id, what)
                    while raw.read(_PIECE):
                        continue
                    raw.raw.check(layer.digest, what)
            _check_root(inside, str(origin))
        return root

    return Start(layer_key("image", image.id), image.id, fill, env=image.env, workdir=image.workdir)


def _tarball(volumes: Volumes, path: Path) -> Start:
    digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()

    def fill(name: str, progress: Callable[[int], None]) -> Path:
        root = volumes.new_root(name)
        with Rooted(root) as inside, path.open("rb") as file:
            heard = _with_room(volumes.storage, progress)
            unpack(decompressed(file), inside, whiteouts=False, what=str(path), progress=heard)
            _check_root(inside, f"tarball:{path}")
        return root

    return Start(layer_key("tarball", digest), f"blake3:{digest}", fill)


def _folder(volumes: Volumes, path: Path) -> Start:
    path = path.resolve()
    if volumes.storage.resolve().is_relative_to(path):
        raise TemplateError(f"{path} holds the storage of templates itself, as a machine's own root does; name another")

    def fill(name: str, _: Callable[[int], None]) -> Path:
        root = volumes.new_root(name)
        # Of itself `cp --archive` follows no link. What is mounted there, a /proc for one, stays out.
        how = ("--archive", "--one-file-system", "--reflink=auto", "--no-target-directory")
        run(["cp", *how, path, root], timeout=_COPY_SECONDS)
        # A machine has its own devices.
        run(
            ["find", root, "-xdev", "(", "-type", "b", "-o", "-type", "c", "-o", "-type", "s", ")", "-delete"],
            timeout=600,
        )
        with Rooted(root) as inside:
            _check_root(inside, f"rootfs:{path}")
        return root

    looks = _looks(path)
    return Start(layer_key("rootfs", str(path), looks), f"looks:{looks}", fill)


def _looks(root: Path) -> str:
    """A digest of all names with their inodes, sizes and times. The kernel's `ctime` tells every change."""
    digest, device = blake3(), root.stat().st_dev
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda one: os.fsencode(one.name)):
                status = entry.stat(follow_symlinks=False)
                numbers = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                digest.update(os.fsencode(entry.path) + f"\0{numbers}\0".encode())
                if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                    waiting.append(Path(entry.path))
    return digest.hexdigest()[:32]


def _with_room(storage: Path, progress: Callable[[int], None]) -> Callable[[int], None]:
    """A `progress` that ends an unpacking before the disk is full: what lies there is every sandbox's."""

    def heard(count: int) -> None:
        if shutil.disk_usage(storage).free < _ROOM_BYTES:
            raise TemplateError(
                f"no room on the disk: {storage} has less than {_ROOM_BYTES // 1024**2} MiB left; free some"
            )
        progress(count)

    return heard


def _check_root(root: Rooted, what: str) -> None:
    names = set(root.names(""))
    if names & _SYSTEM:
        return
    if names & {"oci-layout", "manifest.json", "index.json"}:
        raise TemplateError(f"{what} is an image and not a root file system; say oci-archive: or docker-archive:")
    found = ", ".join(sorted(names)[:8]) or "nothing"
    raise TemplateError(f"{what} is no root file system: there is no etc, bin or usr at its top, but {found[:300]}")


@contextlib.contextmanager
def _download(storage: Path, origin: Origin) -> Iterator[Origin]:
    """Have skopeo copy an image here."""
    if shutil.which("skopeo") is None:
        raise TemplateError(
            f"{origin} is copied by skopeo, which is not installed: apt-get install skopeo; or copy it elsewhere, with "
            "`skopeo copy … oci-archive:image.tar` or `docker save`, and use oci-archive: or docker-archive:"
        )
    for left in storage.glob(f"{_DOWNLOAD}*"):
        shutil.rmtree(left)  # Of a build that died: we hold the lock of builds.
    with tempfile.TemporaryDirectory(dir=storage, prefix=_DOWNLOAD) as folder:
        command = ["skopeo", "copy", "--override-os", "linux", "--override-arch", architecture()]
        try:
            run([*command, origin.place, f"oci:{folder}/image:copied"], timeout=_COPY_SECONDS)
        except CommandFailed as error:
            raise TemplateError(
                f"{origin} can't be copied: {error}; is the name right, and is there a network?"
            ) from None
        yield Origin("oci", f"{folder}/image", "copied")
