"""What a file is by its first bytes: pointers and pages in place of data, images that move."""

from pathlib import PurePath

import pytest
from PIL import Image

from alpro.shards.file_type import HEAD_BYTES, find_placeholder, media_kind, read_head

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
PAGES = (
    b"<!DOCTYPE html>\n<html lang=en>",
    b"\xef\xbb\xbf \n<HTML><body>",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
    b"<!-- error -->\n<head><title>Sign in</title>",
    b"<title>Sign in</title>",
)


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("git-lfs pointer", [POINTER, POINTER.replace(b"git-lfs", b"hawser")]),
        ("git-annex pointer", [b"/annex/objects/SHA256E-s1--0.mp4\n"]),
        ("HTML page", PAGES),
        (
            "XML document",
            [
                b"\xef\xbb\xbf<?xml version='1.0'?><Error>",
                b"<annotation>\n",
                b"<Error><Code>",
            ],
        ),
        ("zero-filled file", [bytes(16), bytes(HEAD_BYTES)]),
    ],
)
def test_what_is_stored_in_place_of_data_is_named(kind, heads):
    for head in heads:
        placeholder = find_placeholder(head)

        assert placeholder
        assert placeholder.kind == kind
        assert placeholder.remedy


def test_data_are_no_placeholder():
    texts = [
        b"",
        b"a dog <html>",
        b"<s> a caption </s>",
        b"version 1",
        b"h < 3 and head",
    ]
    binary = [
        bytes(15),
        bytes(100) + b"\1",
        b"\0\0\0\x20ftypisom",
        b"\x89PNG\r\n\x1a\n",
    ]
    for head in texts + binary:
        assert find_placeholder(head) is None, head


def test_an_animated_image_is_a_video(tmp_path):
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    for extension in ("png", "webp", "avif"):
        still = tmp_path / f"still.{extension}"
        pictures[0].save(still)
        moving = tmp_path / f"moving.{extension}"
        pictures[0].save(
            moving, save_all=True, append_images=pictures[1:], duration=100
        )

        assert media_kind(still, read_head(still)) == "image"
        assert media_kind(moving, read_head(moving)) == "video"


@pytest.mark.parametrize(
    "head", [b"", b"\x89PNG", b"RIFF", b"RIFF1234WEBPVP8X", b"\0\0\0\0ftyp"]
)
def test_a_cut_file_has_the_kind_of_its_extension(head):
    assert media_kind(PurePath("a.PNG"), head) == "image"
    assert media_kind(PurePath("a.mp4"), head) == "video"
