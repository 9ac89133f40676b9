"""Reading an image from a folder or an archive, as OCI's image-spec 1.1 and `docker save` lay it out.

All of it is somebody else's: JSON is bounded and strictly parsed, a blob is found by its digest and is what its digest
says, and no name in it becomes a path of the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import platform
import posixpath
import stat
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from actors.template.archives import Member
from actors.template.manifest import TemplateError
from actors.template.rooted import BadPath, open_beneath, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actors.template.origin import Origin

_JSON_BYTES = 8 * 1024**2
_LAYERS_MAX = 512
_FILES_MAX = 10_000
"""Of an image's archive; what comes later is not found."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
_TAG = "org.opencontainers.image.ref.name"
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_LAYERS = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Model = TypeVar("Model", bound=BaseModel)


class _Platform(BaseModel):
    architecture: str = ""
    os: str = ""


class _Descriptor(BaseModel):
    mediaType: str = ""
    digest: Digest
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None


class _Index(BaseModel):
    manifests: Annotated[list[_Descriptor], Field(max_length=1000)]


class _Manifest(BaseModel):
    config: _Descriptor
    layers: Annotated[list[_Descriptor], Field(max_length=_LAYERS_MAX)]


class _Saved(BaseModel):
    """An image in the `manifest.json` of `docker save`."""

    Config: str
    RepoTags: list[str] | None = None
    Layers: Annotated[list[str], Field(max_length=_LAYERS_MAX)]


class _Settings(BaseModel):
    Env: list[str] | None = None
    WorkingDir: str | None = None


class _RootFs(BaseModel):
    diff_ids: Annotated[list[Digest], Field(max_length=_LAYERS_MAX)]


class _Config(BaseModel):
    architecture: str = ""
    os: str = ""
    config: _Settings | None = None
    rootfs: _RootFs


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image."""

    open: Callable[[], IO[bytes]]
    """Its bytes, compressed or not."""
    digest: str
    """Of these bytes; "" where only `diff_id` is known."""
    diff_id: str
    """Digest of its tar archive, without compression."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be unpacked."""

    id: str
    """Digest of its config, which has the digests of all its layers."""
    layers: list[Layer]
    env: dict[str, str]
    workdir: str


class Digesting(io.RawIOBase):
    """A stream that is hashed while it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read and hash."""
        data = self._stream.read(len(buffer))
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def check(self, digest: str, what: str) -> None:
        """Once all was read. Raises `TemplateError` where it is something else."""
        while self.read(1024**2):
            continue
        if digest and f"sha256:{self._hash.hexdigest()}" != digest:
            raise TemplateError(f"{what} is damaged: it is not what {digest} names; copy the image again")


class _Store(Protocol):
    """The files of a layout."""

    what: str

    def open(self, name: str) -> IO[bytes]:
        """Raises `TemplateError` where there is none."""
        ...


class _Folder:
    def __init__(self, path: str) -> None:
        self.what = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str) -> IO[bytes]:
        try:
            fd = open_beneath(self._fd, name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise TemplateError(f"the image {self.what} has no readable {name} ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise TemplateError(f"in the image {self.what}, {name} is no file")
        return open(fd, "rb")

    def close(self) -> None:
        os.close(self._fd)


class _Archive:
    def __init__(self, path: str) -> None:
        self.what = path
        try:
            self._tar = tarfile.open(path, "r:", tarinfo=Member)  # noqa: SIM115 - closed by `close`
            found = itertools.islice(self._tar, _FILES_MAX)
            self._members = {posixpath.normpath(member.name): member for member in found}
        except (tarfile.TarError, EOFError, UnicodeError, ValueError, RecursionError) as error:
            raise TemplateError(f"{path} is no uncompressed tar archive of an image: {error}") from None

    def open(self, name: str) -> IO[bytes]:
        name = posixpath.normpath(name)
        member = self._members.get(name)
        if member is not None and member.issym():
            # Older Dockers save a layer once, and link to it.
            member = self._members.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
        file = self._tar.extractfile(member) if member is not None and member.isreg() else None
        if file is None:
            raise TemplateError(f"the image {self.what} has no file {name[:200]}")
        return file

    def close(self) -> None:
        self._tar.close()


@contextlib.contextmanager
def open_image(origin: Origin) -> Iterator[Image]:
    """The image that an origin of kind `oci`, `oci-archive` or `docker-archive` names, for this machine's kind of CPU.

    Raises `TemplateError` where it is damaged, has no such tag, or is for other machines; `OSError`.
    """
    store = _Folder(origin.place) if origin.kind == "oci" else _Archive(origin.place)
    try:
        yield _saved(store, origin.tag) if origin.kind == "docker-archive" else _layout(store, origin.tag)
    finally:
        store.close()


def architecture() -> str:
    """This machine's, as images call it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _layout(store: _Store, tag: str) -> Image:
    index = _read(store, "index.json", _Index)
    found = index.manifests
    if tag:
        found = [one for one in found if (one.annotations or {}).get(_TAG) == tag]
    if not tag and len({one.digest for one in found}) > 1 and not all(one.platform for one in found):
        tags = ", ".join(sorted((one.annotations or {}).get(_TAG, "?") for one in found))
        raise TemplateError(f"{store.what} holds several images; add one of their tags: {tags[:500]}")
    if not found:
        tags = ", ".join(sorted((one.annotations or {}).get(_TAG, "?") for one in index.manifests))
        raise TemplateError(f"{store.what} has no image {tag!r}; it has: {tags[:500] or 'none'}")
    chosen = _for_this_machine(store, found)
    if chosen.mediaType in _INDEXES:
        chosen = _for_this_machine(store, _read_blob(store, chosen.digest, _Index).manifests)
    manifest = _read_blob(store, chosen.digest, _Manifest)
    config = _read_blob(store, manifest.config.digest, _Config)
    for layer in manifest.layers:
        if layer.mediaType and not layer.mediaType.startswith(_LAYERS):
            raise TemplateError(f"{store.what} has a layer of a kind that is not read here: {layer.mediaType[:100]}")
    opened = [(partial(store.open, _blob(layer.digest)), layer.digest) for layer in manifest.layers]
    return _image(store, manifest.config.digest, config, opened)


def _saved(store: _Store, name: str) -> Image:
    images = _read_list(store, "manifest.json", _Saved)
    found = [one for one in images if not name or any(_is_named(tag, name) for tag in one.RepoTags or [])]
    if len(found) != 1:
        names = ", ".join(tag for one in images for tag in one.RepoTags or ["(no name)"])
        raise TemplateError(f"{store.what} has {len(found)} images {name!r}; add one of their names: {names[:500]}")
    data = _bytes(store, found[0].Config)
    config = _parsed(store, found[0].Config, data, _Config)
    opened = [(partial(store.open, name), "") for name in found[0].Layers]
    return _image(store, f"sha256:{hashlib.sha256(data).hexdigest()}", config, opened)


def _is_named(tag: str, name: str) -> bool:
    """Whether an image is meant: `docker.io/library/debian:12` is `debian:12`, too."""
    return tag == name or tag.endswith(f"/{name}")


def _image(store: _Store, id_: str, config: _Config, opened: Sequence[tuple[Callable[[], IO[bytes]], str]]) -> Image:
    if (config.os or "linux", config.architecture or architecture()) != ("linux", architecture()):
        raise TemplateError(
            f"the image {store.what} is for {config.os}/{config.architecture}, and this machine is linux/"
            f"{architecture()}; take one for it"
        )
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(opened):
        raise TemplateError(f"the image {store.what} is damaged: {len(opened)} layers, and digests of {len(diff_ids)}")
    settings = config.config or _Settings()
    pairs = (pair.partition("=") for pair in settings.Env or [])
    env = {key: value for key, equals, value in pairs if key and equals and "\0" not in key + value}
    workdir = settings.WorkingDir or ""
    try:
        workdir = "/" + "/".join(parts_of(workdir)) if workdir.strip("/") else ""
    except BadPath:
        raise TemplateError(f"the image {store.what} has a bad working directory: {workdir[:100]!r}") from None
    layers = [Layer(open_, digest, diff_id) for (open_, digest), diff_id in zip(opened, diff_ids, strict=True)]
    return Image(id_, layers, env, workdir)


def _for_this_machine(store: _Store, found: list[_Descriptor]) -> _Descriptor:
    fitting = [
        one
        for one in found
        if one.platform is None or (one.platform.os, one.platform.architecture) == ("linux", architecture())
    ]
    if not fitting:
        others = ", ".join(sorted({f"{one.platform.os}/{one.platform.architecture}" for one in found if one.platform}))
        raise TemplateError(
            f"the image {store.what} has nothing for linux/{architecture()}, only for: {others[:300] or 'nothing'}"
        )
    return fitting[0]


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read_blob(store: _Store, digest: str, model: type[Model]) -> Model:
    data = _bytes(store, _blob(digest))
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise TemplateError(f"the image {store.what} is damaged: a blob is not what {digest} names; copy it again")
    return _parsed(store, digest, data, model)


def _read(store: _Store, name: str, model: type[Model]) -> Model:
    return _parsed(store, name, _bytes(store, name), model)


def _read_list(store: _Store, name: str, model: type[Model]) -> list[Model]:
    class Several(BaseModel):
        images: Annotated[list[model], Field(max_length=1000)]  # type: ignore[valid-type]

    return _parsed(store, name, b'{"images": ' + _bytes(store, name) + b"}", Several).images


def _bytes(store: _Store, name: str) -> bytes:
    with store.open(name) as file:
        data = file.read(_JSON_BYTES + 1)
    if len(data) > _JSON_BYTES:
        raise TemplateError(f"the image {store.what} is damaged: {name[:200]} is larger than any manifest")
    return data


def _parsed(store: _Store, name: str, data: bytes, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TemplateError(f"the image {store.what} is damaged: {name[:200]}: {where}: {first['msg']}") from None
