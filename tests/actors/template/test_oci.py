"""Images as others write them, good ones and damaged ones."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from actors.machines.overlay import OverlayVolumes
from actors.template.manifest import TemplateError
from actors.template.oci import open_image
from actors.template.origin import Origin, parse_origin
from actors.template.start import open_start
from tests.actors.template.images import archive, blobs, docker_archive, files, layout, member, packed_layout, sha256

LOWER = archive(*files(etc__a="1", etc__b="1"))
UPPER = archive((member("etc/.wh.a"), b""), *files(etc__c="2"))


@pytest.fixture
def volumes(tmp_path: Path) -> OverlayVolumes:
    made = OverlayVolumes(tmp_path / "storage")
    made.prepare()
    return made


def unpacked(volumes: OverlayVolumes, words: str) -> dict[str, str]:
    """The files of an image's `etc`."""
    with open_start(volumes, parse_origin(words)) as start:
        root = start.fill(f"root-{secrets.token_hex(4)}", lambda _: None)
    return {path.name: path.read_text() for path in (root / "etc").iterdir()}


@pytest.mark.parametrize("packed", ["gzip", "zstd", ""])
def test_a_layout(volumes: OverlayVolumes, tmp_path: Path, packed: str) -> None:
    layout(tmp_path / "image", [LOWER, UPPER], packed=packed)
    assert unpacked(volumes, f"oci:{tmp_path}/image") == {"b": "1", "c": "2"}


def test_a_layout_in_an_archive(volumes: OverlayVolumes, tmp_path: Path) -> None:
    packed_layout(tmp_path / "image.tar", layout(tmp_path / "image", [LOWER, UPPER]))
    assert unpacked(volumes, f"oci-archive:{tmp_path}/image.tar:latest") == {"b": "1", "c": "2"}


def test_what_docker_save_writes(volumes: OverlayVolumes, tmp_path: Path) -> None:
    docker_archive(tmp_path / "image.tar", [LOWER, UPPER, LOWER])
    assert unpacked(volumes, f"docker-archive:{tmp_path}/image.tar:tiny:1") == {"a": "1", "b": "1", "c": "2"}


def test_environment_and_folder_are_the_images(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER], Env=["A=b=c", "EMPTY=", "bad"], WorkingDir="/app/")
    with open_image(Origin("oci", str(image))) as opened:
        assert (opened.env, opened.workdir) == ({"A": "b=c", "EMPTY": ""}, "/app")
    bad = layout(tmp_path / "bad", [LOWER], WorkingDir="/a/../..")
    with pytest.raises(TemplateError, match="bad working directory"), open_image(Origin("oci", str(bad))):
        pass


def test_one_of_several_images_is_chosen_by_its_tag(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER], tag="one")
    layout(image, [UPPER], tag="two")
    with open_image(Origin("oci", str(image), "two")) as opened:
        assert [layer.diff_id for layer in opened.layers] == [sha256(UPPER)]
    with pytest.raises(TemplateError, match="several images; add one of their tags: one, two"):
        open_image(Origin("oci", str(image))).__enter__()
    with pytest.raises(TemplateError, match="has no image 'three'; it has: one, two"):
        open_image(Origin("oci", str(image), "three")).__enter__()


def test_the_image_of_this_machines_cpu_is_chosen_from_an_index(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER])
    ours = json.loads((image / "index.json").read_text())["manifests"][0]
    _, other = blobs([UPPER], arch="other")
    from actors.template.oci import architecture

    index = {
        "manifests": [
            {**json.loads(other), "platform": {"os": "linux", "architecture": "other"}},
            {**ours, "platform": {"os": "linux", "architecture": architecture()}},
        ]
    }
    nested = json.dumps(index).encode()
    (image / "blobs" / sha256(nested).replace(":", "/")).write_bytes(nested)
    kind = "application/vnd.oci.image.index.v1+json"
    (image / "index.json").write_text(json.dumps({"manifests": [{"mediaType": kind, "digest": sha256(nested)}]}))
    with open_image(Origin("oci", str(image))) as opened:
        assert [layer.diff_id for layer in opened.layers] == [sha256(LOWER)]
    del index["manifests"][1]
    (image / "index.json").write_text(json.dumps(index))
    with pytest.raises(TemplateError, match=r"has nothing for linux/.*, only for: linux/other"):
        open_image(Origin("oci", str(image))).__enter__()


def test_an_image_for_another_cpu_is_refused(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER], arch="vax")
    with pytest.raises(TemplateError, match="is for linux/vax, and this machine is linux/"):
        open_image(Origin("oci", str(image))).__enter__()


def test_a_damaged_layer_is_noticed(volumes: OverlayVolumes, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER], packed="")
    blob = image / "blobs" / sha256(LOWER).replace(":", "/")
    blob.write_bytes(LOWER.replace(b"etc/b", b"etc/z", 1))
    with pytest.raises(TemplateError, match=r"can't be read|is damaged"):
        unpacked(volumes, f"oci:{image}")


def test_a_layer_with_another_content_is_noticed(volumes: OverlayVolumes, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER], packed="")
    (image / "blobs" / sha256(LOWER).replace(":", "/")).write_bytes(archive(*files(etc__evil="1")))
    with pytest.raises(TemplateError, match=r"layer 1 of oci:.* is damaged: it is not what sha256:"):
        unpacked(volumes, f"oci:{image}")
    saved = docker_archive(tmp_path / "image.tar", [LOWER])
    saved.write_bytes(saved.read_bytes().replace(b"etc/b", b"etc/b"[::-1]))
    with pytest.raises(TemplateError, match=r"can't be read|is damaged"):
        unpacked(volumes, f"docker-archive:{saved}")


@pytest.mark.parametrize("name", ["config", "manifest"])
def test_a_damaged_manifest_is_noticed(tmp_path: Path, name: str) -> None:
    image = layout(tmp_path / "image", [LOWER])
    for blob in (image / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        if data.startswith(b"{") and (b'"layers": [' in data) == (name == "manifest"):
            blob.write_bytes(data + b" ")
    with pytest.raises(TemplateError, match="is damaged: a blob is not what sha256:"):
        open_image(Origin("oci", str(image))).__enter__()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{}", "manifests: Field required"),
        ("nothing", "index.json"),
        ('{"manifests": []}', "has no image"),
        ('{"manifests": [{"digest": "sha256:../../../../etc/passwd"}]}', "manifests.0.digest"),
        ('{"manifests": [{"digest": "md5:00"}]}', "manifests.0.digest"),
        ('{"manifests": [{"digest": "sha256:' + "0" * 64 + '"}]}', "has no readable blobs/sha256/0000"),
        (" " * 9_000_000, "larger than any manifest"),
    ],
)
def test_a_bad_index_says_what_is_wrong(tmp_path: Path, index: str, said: str) -> None:
    image = layout(tmp_path / "image", [LOWER])
    (image / "index.json").write_text(index)
    with pytest.raises(TemplateError) as caught:
        open_image(Origin("oci", str(image))).__enter__()
    assert said in str(caught.value)


def test_a_blob_that_is_a_link_out_is_not_read(tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [LOWER])
    (image / "index.json").rename(tmp_path / "index.json")
    (image / "index.json").symlink_to(tmp_path / "index.json")
    with pytest.raises(TemplateError, match=r"has no readable index\.json"):
        open_image(Origin("oci", str(image))).__enter__()


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(b"text" * 500)
    for kind in ("oci-archive", "docker-archive"):
        with pytest.raises(TemplateError, match="is no uncompressed tar archive of an image"):
            open_image(Origin(kind, str(tmp_path / "image.tar"))).__enter__()
    packed_layout(tmp_path / "image.tar", layout(tmp_path / "image", [LOWER]))
    with pytest.raises(TemplateError, match=r"has no file manifest\.json"):
        open_image(Origin("docker-archive", str(tmp_path / "image.tar"))).__enter__()


def test_an_image_is_no_tarball_of_a_root(volumes: OverlayVolumes, tmp_path: Path) -> None:
    saved = docker_archive(tmp_path / "image.tar", [LOWER])
    with pytest.raises(
        TemplateError, match="is an image and not a root file system; say oci-archive: or docker-archive:"
    ):
        unpacked(volumes, f"tarball:{saved}")
    (tmp_path / "other.tar").write_bytes(archive(*files(readme="x")))
    with pytest.raises(TemplateError, match="no root file system: there is no etc, bin or usr at its top, but readme"):
        unpacked(volumes, f"tarball:{tmp_path}/other.tar")


def test_a_registrys_image_needs_skopeo(volumes: OverlayVolumes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TemplateError, match="copied by skopeo, which is not installed: apt-get install skopeo"):
        unpacked(volumes, "docker://registry.invalid/image:1")


def test_what_skopeo_can_not_copy_says_why_and_leaves_nothing(
    volumes: OverlayVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "skopeo").write_text("#!/bin/sh\necho 'level=fatal msg=\"no such host\"' >&2\nexit 1\n")
    (tmp_path / "skopeo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(TemplateError, match=r"can't be copied: skopeo failed .*no such host.*is the name right"):
        unpacked(volumes, "docker://registry.invalid/image:1")
    assert not list(volumes.storage.glob("image-*"))
