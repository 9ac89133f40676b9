"""Images and archives that tests make: small, and as others write them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zstandard

from actors.machines.bundle import find_busybox
from actors.template.oci import architecture

APPLETS = (
    "cat",
    "chmod",
    "echo",
    "env",
    "grep",
    "head",
    "id",
    "ls",
    "mkdir",
    "sed",
    "sh",
    "stat",
    "true",
    "wc",
)


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """An entry of an archive."""
    made = tarfile.TarInfo(name)
    made.type = kind
    made.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of just these, however bad they are."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def files(**content: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Entries of files, `__` for a slash."""
    return [(member(name.replace("__", "/")), text.encode()) for name, text in content.items()]


def busybox_root() -> bytes:
    """A root like Alpine's, as a tar archive: no bash, no Python, no C library."""
    entries = [(member(folder, tarfile.DIRTYPE), b"") for folder in ("bin", "etc", "usr", "usr/bin")]
    entries.append((member("bin/busybox", mode=0o755), find_busybox().read_bytes()))
    entries += [(member(f"bin/{name}", tarfile.SYMTYPE, linkname="/bin/busybox"), b"") for name in APPLETS]
    entries += files(etc__passwd="root:x:0:0:root:/root:/bin/sh\n")
    entries += files(**{"etc__os-release": 'ID=tiny\nPRETTY_NAME="Tiny Linux 1"\nVERSION_CODENAME=tiny\n'})
    return archive(*entries)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blobs(
    layers: list[bytes], *, packed: str = "gzip", arch: str = "", **settings: object
) -> tuple[dict[str, bytes], bytes]:
    """The blobs of an image by digest, and the descriptor of its manifest as JSON."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": partial(gzip.compress, mtime=0),
        "zstd": zstandard.ZstdCompressor().compress,
        "": bytes,
    }
    pack = packers[packed]
    suffix = f"+{packed}" if packed else ""
    found = {sha256(pack(layer)): pack(layer) for layer in layers}
    config = json.dumps(
        {
            "architecture": arch or architecture(),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [_descriptor(pack(layer), f"application/vnd.oci.image.layer.v1.tar{suffix}") for layer in layers],
        }
    ).encode()
    found |= {sha256(config): config, sha256(manifest): manifest}
    return found, json.dumps(_descriptor(manifest, "application/vnd.oci.image.manifest.v1+json")).encode()


def _descriptor(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": sha256(data), "size": len(data)}


def layout(folder: Path, layers: list[bytes], *, tag: str = "latest", packed: str = "gzip", **more: object) -> Path:
    """An OCI layout."""
    found, descriptor = blobs(layers, packed=packed, **more)  # type: ignore[arg-type]
    (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    for digest, data in found.items():
        (folder / "blobs" / digest.replace(":", "/")).write_bytes(data)
    named = {**json.loads(descriptor), "annotations": {"org.opencontainers.image.ref.name": tag}}
    there = json.loads((folder / "index.json").read_text())["manifests"] if (folder / "index.json").exists() else []
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [*there, named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def packed_layout(file: Path, folder: Path) -> Path:
    """A layout as an archive."""
    with tarfile.open(file, "w") as tar:
        tar.add(folder, arcname=".")
    return file


def docker_archive(file: Path, layers: list[bytes], *, name: str = "tiny:1", **settings: object) -> Path:
    """What older versions of `docker save` write: a layer that comes twice is a link the second time."""
    config = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
    ).encode()
    entries: list[tuple[tarfile.TarInfo, bytes]] = [(member("config.json"), config)]
    names: dict[bytes, str] = {}
    listed = []
    for number, layer in enumerate(layers):
        listed.append(f"{number}/layer.tar")
        if layer in names:
            entries.append((member(listed[-1], tarfile.SYMTYPE, linkname=f"../{names[layer]}"), b""))
        else:
            entries.append((member(listed[-1]), layer))
            names[layer] = listed[-1]
    saved = [{"Config": "config.json", "RepoTags": [name], "Layers": listed}]
    entries.append((member("manifest.json"), json.dumps(saved).encode()))
    file.write_bytes(archive(*entries))
    return file
