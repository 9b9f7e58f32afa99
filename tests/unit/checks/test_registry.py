"""Checks of images: damage is found in any chunking, and sound files are let pass."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from jobs.checks.base import is_no_image, is_warning, settled
from jobs.checks.registry import check_for, finding_in, is_image_name
from jobs.formats.pictures import content_of
from jobs.model import Verify
from tests.support.builders.contents import chunk, png


def picture(kind: str, **options: object) -> bytes:
    """A real picture, as Pillow writes it."""
    image = Image.new("RGB", (40, 30), "white")
    image.putdata([(x * 6 % 256, y * 8 % 256, (x * y) % 256) for y in range(30) for x in range(40)])
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunkings(data: bytes) -> Iterator[list[bytes]]:
    """Whole, in halves, in odd pieces, byte by byte."""
    yield [data]
    yield [data[: len(data) // 2], data[len(data) // 2 :]]
    for size in (7, 64, 1):
        yield [data[i : i + size] for i in range(0, len(data), size)]


def stray(before: bytes, count: int) -> bytes:
    """A JPEG with zeros before the first segment with these bytes."""
    head, marker, rest = picture("JPEG").partition(before)
    return head + b"\0" * count + marker + rest


# SOI, SOF55, SOS, EOI (ITU-T T.87, annex C).
JPEG_LS = bytes.fromhex(
    "ffd8 fff7 000b 08 0004 0004 01 011100 ffda 0008 01 0100 00 00 00 abcdef ffd9"
)


def found(name: str, data: bytes, verify: Verify = Verify.STRUCTURE) -> str | None:
    """The finding, which is the same however the bytes arrive."""
    findings = {finding_in(memoryview(data), name, verify)}
    for pieces in chunkings(data):
        check = check_for(name, verify)
        assert check is not None
        for piece in pieces:
            check.feed(memoryview(piece))
        findings.add(check.finish())
    assert len(findings) == 1
    return findings.pop()


SOUND: dict[str, tuple[str, dict[str, bool | int]]] = {
    "png": ("PNG", {}),
    "apng.png": ("PNG", {"optimize": True}),
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "restart.jpg": ("JPEG", {"restart_marker_blocks": 1}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "avif": ("AVIF", {}),
    "jp2": ("JPEG2000", {}),
    "j2k": ("JPEG2000", {"no_jp2": True}),
    "ppm": ("PPM", {}),
}


@pytest.mark.parametrize("verify", [Verify.STRUCTURE, Verify.DECODE])
@pytest.mark.parametrize("name", SOUND)
def test_sound_pictures_pass(name: str, verify: Verify) -> None:
    kind, options = SOUND[name]
    assert found(f"images/a.{name}", picture(kind, **options), verify) is None


CUT = ["png", "jpg", "progressive.jpg", "gif", "webp", "bmp", "avif", "jp2", "j2k"]


@pytest.mark.parametrize("name", CUT)
def test_a_picture_cut_anywhere_is_found(name: str) -> None:
    kind, options = SOUND[name]
    data = picture(kind, **options)
    for length in [*range(1, 80), *range(80, len(data), 53), len(data) - 1]:
        check = check_for(f"images/a.{name}", Verify.STRUCTURE)
        assert check is not None
        check.feed(memoryview(data[:length]))
        finding = check.finish()
        assert finding is not None, length
        assert not is_warning(finding), length


def test_every_flipped_bit_of_a_png_is_found() -> None:
    data = png(3)
    for place in range(len(data)):
        for bit in (0, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            check = check_for("images/a.png", Verify.STRUCTURE)
            assert check is not None
            check.feed(memoryview(bytes(damaged)))
            finding = check.finish()
            assert finding is not None, (place, bit)
            assert not is_warning(finding), (place, bit)


SIGNATURE = b"\x89PNG\r\n\x1a\n"
IHDR = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
IDAT = chunk(b"IDAT", zlib.compress(b"\0" * 52))
IEND = chunk(b"IEND", b"")
TEXT = chunk(b"tEXt", b"Comment\0x" * 9)
PALETTE = chunk(b"PLTE", b"\0\1\2" * 8)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (SIGNATURE + IHDR + IDAT + IEND, None),
        (SIGNATURE + IHDR + TEXT + PALETTE + IDAT + IDAT + TEXT + IEND, None),
        (SIGNATURE + TEXT + IHDR + IDAT + IEND, "PNG: no IHDR chunk"),
        (SIGNATURE + IHDR + IHDR + IDAT + IEND, "PNG: two IHDR chunks"),
        (SIGNATURE + IHDR + IDAT + TEXT + IDAT + IEND, "PNG: IDAT chunks are not consecutive"),
        (SIGNATURE + IHDR + IDAT + PALETTE + IEND, "PNG: PLTE chunk misplaced or of a wrong"),
        (SIGNATURE + IHDR + TEXT + IEND, "PNG: no IDAT chunk"),
        (SIGNATURE + IHDR + IDAT, "PNG: truncated in or after chunk IDAT"),
        (SIGNATURE + IHDR + IDAT[:-1] + b"x" + IEND, "PNG: wrong CRC in chunk IDAT"),
        (SIGNATURE + IHDR + IDAT + chunk(b"IEND", b"x"), "PNG: IEND chunk contains data"),
        (SIGNATURE + IHDR + IDAT + b"\0" * 64, "PNG: damaged after chunk IDAT"),
        (
            SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 4, 8, 2, 0, 0, 0)) + IDAT + IEND,
            "PNG: impossible size 0 × 4",
        ),
        (
            SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 3, 2, 0, 0, 0)) + IDAT + IEND,
            "PNG: impossible IHDR chunk",
        ),
        (SIGNATURE + IHDR + IDAT + IEND + b"more", "warning: PNG: 4 bytes after the end"),
    ],
)
def test_png_chunks_are_held_to_their_order(data: bytes, finding: str | None) -> None:
    reported = found("images/a.png", data)
    assert reported == finding or (
        finding is not None and reported is not None and finding in reported
    )


@pytest.mark.parametrize(
    ("name", "data", "finding"),
    [
        ("images/a.jpg", picture("JPEG")[:-2], "JPEG: no end (EOI): truncated"),
        ("images/a.jpg", picture("JPEG")[:-200] + b"\0" * 200, "JPEG: no end (EOI): truncated"),
        ("images/a.jpg", picture("JPEG") + b"\0" * 9, None),
        ("images/a.jpg", stray(b"\xff\xdb", 3), "warning: JPEG: 3 stray bytes between its segm"),
        ("images/a.jpg", stray(b"\xff\xdb", 65), "JPEG: damaged header"),
        ("images/a.jpg", stray(b"\xff\xc0", 1), "JPEG: damaged header"),
        ("images/a.jpg", JPEG_LS, None),
        ("images/a.jpg", picture("JPEG") + b"trailer" * 9, "warning: JPEG: other data after"),
        ("images/a.gif", picture("GIF") + b"trailer" * 99, "warning: GIF: other data after"),
        ("images/a.png", picture("JPEG"), "warning: named .png, but contains JPEG"),
        ("images/a.png", picture("JPEG")[:-2], "JPEG: no end (EOI): truncated"),
        ("images/a", picture("PNG"), None),
        ("images/a.bmp", picture("BMP")[:6] + b"\1" + picture("BMP")[7:], None),
        ("images/a.png", b"", "empty: 0 bytes"),
        ("images/a.png", b"\0" * 300, "not an image: zeros at its start"),
        ("images/a.png", b"\0" * 30, "not an image: zero bytes only"),
        ("images/a.png", b"404 not found\n", "not an image: text"),
        ("images/a.png", b"\n<!DOCTYPE html><html>" + b" " * 80, "not an image: an HTML page"),
        ("images/a.png", b"<?xml version='1.0'?><Error/>", "not an image: an XML text"),
        ("images/a.png", b"PK\x03\x04" + b"\1" * 90, "not an image: a zip archive"),
        ("images/a.png", b"\1\2\3" * 90, "not an image: of an unknown format"),
        (
            "images/a.png",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64,
            "not an image: a Git LFS pointer",
        ),
        ("images/a.png", b"/annex/objects/MD5E-s9--0.png\n", "not an image: a git-annex pointer"),
        ("images/a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", None),
        ("images/a.svg", "<svg></svg>".encode("utf-16"), None),
        ("images/a.svg", b"<!DOCTYPE html><html>404</html>", "not an image: an HTML page"),
    ],
)
def test_what_a_name_promises_is_held(name: str, data: bytes, finding: str | None) -> None:
    reported = found(name, data)
    assert reported == finding or (
        finding is not None and reported is not None and finding in reported
    )


def test_decoding_sees_what_the_structure_hides() -> None:
    hollow = SIGNATURE + IHDR + chunk(b"IDAT", b"no deflate stream") + IEND
    assert found("images/a.png", hollow) is None
    reported = found("images/a.png", hollow, Verify.DECODE)
    assert reported is not None
    assert reported.startswith("decode: ")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("a.png", picture("PNG", icc_profile=bytes(2 << 20)), id="a large profile"),
        pytest.param(
            "a.jpg",
            picture("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]).partition(
                b"\xff\xd9\xff\xd8"
            )[0]
            + b"\xff\xd9",
            id="a preview that was cut off",
        ),
    ],
)
def test_decoding_accepts_what_only_pillow_minds(name: str, data: bytes) -> None:
    assert found(name, data, Verify.DECODE) is None


def test_a_picture_of_very_many_pixels_is_not_decoded_and_that_is_no_verdict() -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(10_000 * 2501)))
    check = check_for("a.png", Verify.DECODE)
    assert check is not None
    check.feed(memoryview(SIGNATURE + head + rows + IEND))
    assert check.finish() == "warning: not decoded: it has more than 178 million pixels"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/a.png", True),
        ("a.JPEG", True),
        ("images/a", True),
        ("images/a.txt", False),
        ("README", False),
        ("images/.png", True),
    ],
)
def test_names_decide_what_must_be_an_image(path: str, expected: bool) -> None:
    assert is_image_name(path) is expected


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64
MP4 = struct.pack(">I", 24) + b"ftypisom" + bytes(8) + b"isom" + bytes(200)


@pytest.mark.parametrize(
    ("name", "data", "named", "unnamed"),
    [
        ("images/.gitkeep", b"", "empty: 0 bytes", None),
        ("images/_SUCCESS", b"", "empty: 0 bytes", None),
        ("images/LICENSE", b"MIT\n", "not an image: text", None),
        ("images/0.txt", b"", "empty: 0 bytes", None),
        ("images/0.txt", b"a caption", "not an image: text", None),
        ("images/0", b"<html>", "not an image: an HTML page", None),
        ("shots/0", b"\1\2\3" * 90, "not an image: of an unknown format", None),
        ("images/0.tga", b"\1\2\3" * 90, None, None),
        ("clips/0.mp4", MP4, None, None),
        ("images/0", MP4, "not an image: a video or another ISO media file (isom)", None),
        ("images/0", picture("JPEG")[:-2], "JPEG: no end (EOI)", "warning: JPEG: no end (EOI)"),
        ("images/0.png.part", picture("PNG")[:-9], "PNG: truncated", "warning: PNG: truncated"),
        ("images/0.mpo", picture("JPEG") + b"more", "warning: JPEG: other data", None),
        ("texts/0.txt", LFS, "not an image: a Git LFS pointer", "not an image: a Git LFS pointer"),
        ("images/0.png", b"", "empty: 0 bytes", "empty: 0 bytes"),
    ],
)
def test_a_file_without_a_pictures_ending_has_to_be_one_only_where_a_record_names_it(
    name: str, data: bytes, named: str | None, unnamed: str | None
) -> None:
    finding = found(name, data)
    for expected, is_named in ((named, True), (unnamed, False)):
        reported = settled(finding, named=is_named)
        assert (reported or "").startswith(expected or "")
        assert (reported is None) is (expected is None)


def test_only_what_may_hold_anything_and_is_no_image_counts_as_none() -> None:
    assert is_no_image(found("images/LICENSE", b"MIT\n"))
    assert not is_no_image(found("images/0", picture("JPEG")[:-2]))
    assert not is_no_image(found("images/0.png", b"MIT\n"))


def box(kind: bytes, data: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack(">I", len(data) + 8 if size is None else size) + kind + data


HEIC = box(b"ftyp", b"mif1" + bytes(4) + b"mif1heic")
META = box(b"meta", bytes(4) + box(b"hdlr", b"x" * 24) + box(b"iloc", b"y" * 5))


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (HEIC + META + box(b"mdat", b"p" * 50), None),
        (HEIC + META + box(b"mdat", b"p" * 50, size=0), None),
        (HEIC + META + struct.pack(">I4sQ", 1, b"mdat", 66) + b"p" * 50, None),
        (HEIC + box(b"meta", bytes(4) + box(b"idat", b"p" * 50)), None),
        (HEIC + box(b"moov", b"t" * 50) + box(b"mdat", b"p" * 50), None),
        (HEIC + META + box(b"mdat", b"p" * 50, size=59), "HEIC: truncated: 139 of 140 bytes"),
        (HEIC + META + struct.pack(">I4sQ", 1, b"mdat", 67) + b"p" * 50, "HEIC: truncated"),
        (HEIC + META, "HEIC: truncated: no idat or mdat box"),
        (HEIC + box(b"mdat", b"p" * 50), "HEIC: truncated: no meta or moov box"),
        (HEIC + META[:-2] + b"\0", "HEIC: truncated"),
        (HEIC + box(b"meta", bytes(4) + box(b"hdlr", size=99)) + b"x" * 99, "HEIC: damaged at"),
        (HEIC + bytes(80), "HEIC: damaged at byte 24"),
        (HEIC + META + box(b"mdat", b"p" * 50) + bytes(80), "warning: HEIC: 80 bytes after"),
        (HEIC + META + box(b"mdat", b"p" * 50) + b"\n", "warning: HEIC: 1 byte after"),
    ],
)
def test_the_boxes_of_a_picture_give_its_length(data: bytes, finding: str | None) -> None:
    reported = found("images/a.heic", data)
    assert reported == finding or (
        finding is not None and reported is not None and finding in reported
    )


JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl " + bytes(4) + b"jxl ")
PIECE = box(b"jxlp", struct.pack(">I", 0) + b"x" * 9)
LAST = box(b"jxlp", struct.pack(">I", 1 << 31 | 1) + b"x" * 9)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (JXL + box(b"jxlc", b"x" * 9), None),
        (JXL + PIECE + LAST, None),
        (JXL + PIECE, "JPEG XL: truncated: no jxlc or jxlp box"),
        (JXL + PIECE + LAST[:5], "JPEG XL: truncated: no jxlc or jxlp box"),
        (JXL + PIECE + LAST[:-1], "JPEG XL: truncated: 73 of 74 bytes"),
    ],
)
def test_a_picture_in_pieces_is_complete_with_its_last_one(
    data: bytes, finding: str | None
) -> None:
    reported = found("images/a.jxl", data)
    assert (reported or "").startswith(finding or "")
    assert (reported is None) is (finding is None)


@pytest.mark.parametrize(
    ("brands", "content"),
    [
        (b"avif____mif1miaf", "AVIF"),
        (b"mif1____mif1avif", "AVIF"),
        (b"mif1____mif1heic", "HEIC"),
        (b"heix____mif1", "HEIC"),
        (b"isom____iso2mp41", None),
        (b"qt  ____qt  ", None),
        (b"crx ____isom", None),
    ],
)
def test_brands_distinguish_pictures_from_videos(brands: bytes, content: str | None) -> None:
    assert content_of(box(b"ftyp", brands) + META) == content


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (HEIC.replace(b"heic", b"avif") + META + box(b"mdat", b"p" * 50), "decode: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(400), "PNG: no IHDR"),
        (HEIC + META + box(b"mdat", b"p" * 50), "warning: not decoded: Pillow"),
        (picture("TIFF")[:8] + bytes(400), "decode: "),
    ],
)
def test_what_a_plugin_claims_and_cannot_open_has_failed(data: bytes, finding: str) -> None:
    reported = found("images/a", data, Verify.DECODE)
    assert reported is not None
    assert reported.removeprefix("if named: ").startswith(finding)


@pytest.mark.parametrize("plugin", [None, "a text: not built"])
def test_a_missing_decoder_is_reported_and_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, plugin: str | None
) -> None:
    data = picture("AVIF")
    Image.init()
    factory, _ = Image.OPEN["AVIF"]
    if plugin is None:
        monkeypatch.delitem(Image.OPEN, "AVIF")
        monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    else:
        monkeypatch.setitem(Image.OPEN, "AVIF", (factory, lambda prefix: plugin))
    reported = found("images/a.avif", data, Verify.DECODE)
    assert reported is not None
    assert reported.startswith("warning: not decoded: Pillow") and "AVIF" in reported


def test_a_codec_that_pillow_was_built_without_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("decoder jpeg not available")

    monkeypatch.setattr(Image, "_getdecoder", missing)
    reported = found("images/a.jpg", picture("JPEG"), Verify.DECODE)
    assert (
        reported == "warning: not decoded: Pillow was built without it: decoder jpeg not available"
    )


def test_nothing_is_looked_at_where_nothing_is_asked() -> None:
    assert check_for("images/a.png", Verify.NONE) is None


def test_a_picture_that_a_limit_leaves_no_memory_for_is_no_damaged_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "_getdecoder", hungry)
    data = picture("PNG")
    assert str(found("a.png", data, Verify.DECODE)).startswith("decode: ")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 50, hard))
    try:
        with pytest.raises(MemoryError):
            found("a.png", data, Verify.DECODE)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
