"""The hostile set: archives made to harm or to deceive, damaged ones, and odd but sound ones."""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.frame

from jobs.errors import Cause
from tests.support.archives.rawstreams import xz_with_dictionary, zst_with_window
from tests.support.archives.rawtar import END, base256, gnu_long, header, member, pax
from tests.support.archives.rawzip import STORED, Raw, unicode_path, zip_of

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4  # any bytes do: checks are not asked here
GOOD = member(b"images/a.png", PNG)

UNSAFE, BAD, LARGE, OTHER = (
    Cause.UNSAFE_MEMBER,
    Cause.BAD_ARCHIVE,
    Cause.TOO_LARGE,
    Cause.UNSUPPORTED,
)


@dataclass(frozen=True)
class Case:
    """One archive and how it must be handled."""

    id: str
    file: str  # name, with the suffix of the format
    content: bytes | Callable[[], bytes]  # a function if it takes long to make
    cause: Cause | None = None  # of the refusal; None: it is sound
    files: tuple[str, ...] = ()  # files that a sound one must contain, at least
    # Whether the reader refuses it; otherwise its names or links are refused when files are
    # written.
    by_reader: bool = True

    @functools.cached_property
    def data(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content()

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        path.write_bytes(self.data)
        return path


@functools.cache
def cases() -> list[Case]:
    """All of them; ids are unique."""
    return [
        *_names(),
        *_links_and_types(),
        *_tar_structure(),
        *_tar_sound(),
        *_streams(),
        *_zip_names(),
        *_zip_structure(),
        *_zip_sound(),
        *_bombs(),
        *_no_archives(),
    ]


def _names() -> Iterator[Case]:
    names = {
        "absolute": b"/tmp/evil",
        "double slash": b"//tmp/evil",
        "parent": b"../evil",
        "parent inside": b"images/../../evil",
        "parent at the end": b"images/..",
        "sibling": b"../data-evil/x",
        "control character": b"images/\x1b[2Jx.png",
        "newline": b"images/a\nb.png",
        "delete": b"images/\x7f.png",
        "long component": b"x" * 300,
        "deep": b"d/" * 300 + b"x",
        "long path": b"/".join([b"p" * 200] * 20),
    }
    for id, name in names.items():
        data = member(name, PNG) if len(name) <= 100 else gnu_long(b"L", name) + member(name, PNG)
        yield Case(f"name {id}", f"n-{id}.tar", GOOD + data + END, UNSAFE, by_reader=False)
    yield _tar("name nul in pax", pax({b"path": b"a\0b"}) + member(b"a"), UNSAFE, by_reader=False)
    yield _tar("pax path climbs", pax({b"path": b"../x"}) + member(b"a"), UNSAFE, by_reader=False)
    yield _tar("pax path absolute", pax({b"path": b"/x"}) + member(b"a"), UNSAFE, by_reader=False)
    yield _tar("GNU name climbs", gnu_long(b"L", b"../x") + member(b"a"), UNSAFE, by_reader=False)
    yield _tar("prefix climbs", member(b"x", prefix=b"../.."), UNSAFE, by_reader=False)
    yield _tar("global pax path", pax({b"path": b"../x"}, kind=b"g") + member(b"a", PNG), BAD)
    yield _tar("sparse name climbs", _sparse_1(b"../x", [(0, 4)], b"data", 4), UNSAFE, False)
    yield _tar("no name", member(b"", PNG), UNSAFE, by_reader=False)
    yield _tar("only dots", member(b"././.", PNG), UNSAFE, by_reader=False)


def _tar(id: str, data: bytes, cause: Cause | None, by_reader: bool = True) -> Case:
    return Case(id, f"{id.replace(' ', '-')}.tar", GOOD + data + END, cause, by_reader=by_reader)


def _links_and_types() -> Iterator[Case]:
    for id, kind, target in (
        ("symlink absolute", b"2", b"/etc/passwd"),
        ("symlink climbs", b"2", b"../../etc"),
        ("symlink inside", b"2", b"a.png"),
        ("symlink to itself", b"2", b"images/l"),
        ("hard link absolute", b"1", b"/etc/passwd"),
        ("hard link climbs", b"1", b"../../etc/passwd"),
    ):
        link = member(b"images/l", kind=kind, target=target)
        yield _tar(id, link, UNSAFE, by_reader=False)
    through = member(b"images/l", kind=b"2", target=b"/tmp") + member(b"images/l/x", PNG)
    yield _tar("file through a symlink", through, UNSAFE, by_reader=False)
    for id, kind in (("character device", b"3"), ("block device", b"4"), ("fifo", b"6")):
        yield _tar(id, member(b"images/d", kind=kind), UNSAFE)
    yield _tar("unknown type", member(b"images/d", b"x", kind=b"Z"), OTHER)
    yield _tar("continued from another volume", member(b"images/d", b"x", kind=b"M"), OTHER)
    times = b"%011o " % 1_700_000_000
    star = bytes(122) + b"%011o " % 4096 + bytes(12 - 3) + times + times + bytes(12) + b"tar\0"
    yield _tar("sparse as star has it", header(b"images/d", kind=b"S", tail=star[:167]), OTHER)


def _tar_structure() -> Iterator[Case]:
    def damaged(id: str, data: bytes) -> Case:
        return Case(id, f"{id.replace(' ', '-')}.tar", data, BAD)

    yield damaged("no end mark", GOOD)
    yield damaged("half an end mark", GOOD + bytes(512))
    yield damaged("a lone zero block", GOOD + bytes(512) + GOOD + END)
    yield damaged("data behind the end", GOOD + END + b"x")
    yield damaged("a hole of zeros", GOOD + bytes(4096) + GOOD + END)
    yield damaged("a long hole of zeros", GOOD + bytes(102_400 - len(GOOD)) + GOOD + END)
    yield damaged("cut in a header", GOOD + GOOD[:300])
    yield damaged("cut in the content", GOOD[:-600])
    yield damaged("cut on a member's border", GOOD + GOOD)
    yield damaged("wrong checksum", GOOD + header(b"b", checksum=1) + END)
    yield damaged("flipped in a header", GOOD + _flip(GOOD, 130) + END)
    yield damaged("garbage between members", GOOD + b"g" * 512 + GOOD + END)
    yield damaged("size not octal", GOOD + header(b"b", size_field=b"9" * 11 + b"\0") + END)
    yield damaged("size negative", GOOD + header(b"b", size_field=base256(-512)) + END)
    yield damaged("size blank", GOOD + header(b"b", size_field=b" " * 12) + END)
    yield damaged("size with a sign", GOOD + header(b"b", size_field=b"-0000000100\0") + END)
    yield damaged("claims more than there is", GOOD + header(b"b", 50_000_000) + END)
    yield damaged("pax record too long", GOOD + _pax_raw(b"99 path=x\n") + member(b"b") + END)
    yield damaged("pax record no length", GOOD + _pax_raw(b"path=x\n") + member(b"b") + END)
    yield damaged("pax record of length 0", GOOD + _pax_raw(b"0 path=x\n") + member(b"b") + END)
    yield damaged("pax size not a number", GOOD + pax({b"size": b"1e3"}) + member(b"b") + END)
    yield damaged("pax header of no member", GOOD + pax({b"path": b"x"}) + END)
    yield damaged("pax header too large", GOOD + header(b"p", 1 << 30, kind=b"x") + END)
    comment = pax({b"comment": bytes(1_000_000).replace(b"\0", b"x")})
    yield damaged("many pax headers", GOOD + 5 * comment + GOOD + END)
    yield damaged("long name too large", GOOD + header(b"p", 1 << 30, kind=b"L") + END)
    yield damaged("hard link with content", GOOD + member(b"l", PNG, kind=b"1", target=b"a") + END)
    yield damaged("sparse map beyond the size", GOOD + _sparse_1(b"s", [(9, 4)], b"data", 4) + END)
    yield damaged(
        "sparse map out of order",
        GOOD + _sparse_1(b"s", [(4, 2), (0, 2)], b"data", 9) + END,
    )
    yield damaged("sparse map too long", GOOD + _sparse_1(b"s", [], b"", 9, count=1 << 40) + END)
    yield damaged("old sparse with a wrong map", GOOD + _sparse_old([(0, 4)], b"datadata", 9) + END)


def _pax_raw(data: bytes) -> bytes:
    return member(b"p", data, kind=b"x")


def _sparse_1(
    name: bytes, pieces: list[tuple[int, int]], data: bytes, size: int, count: int | None = None
) -> bytes:
    lines = b"%d\n" % (len(pieces) if count is None else count)
    lines += b"".join(b"%d\n%d\n" % piece for piece in pieces)
    content = lines + bytes(-len(lines) % 512) + data
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    return pax(records) + member(b"GNUSparseFile.0/x", content)


def _sparse_old(pieces: list[tuple[int, int]], data: bytes, size: int) -> bytes:
    tail = bytearray(167)
    for index, (offset, length) in enumerate(pieces):
        tail[41 + 24 * index : 65 + 24 * index] = b"%011o\0%011o\0" % (offset, length)
    tail[138:150] = b"%011o\0" % size
    return member(b"images/s", data, kind=b"S", magic=b"ustar  \0", tail=bytes(tail))


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]


def _tar_sound() -> Iterator[Case]:
    def sound(id: str, data: bytes, *files: str) -> Case:
        return Case(id, f"{id.replace(' ', '-')}.tar", data + END, None, files)

    yield sound("v7", member(b"a.png", PNG, magic=b"", kind=b"\0"), "a.png")
    yield sound("v7 folder", member(b"d/", magic=b"", kind=b"\0") + GOOD, "images/a.png")
    yield sound("signed checksum", member(b"\xc3\xa9.png", PNG, signed=True), "é.png")
    yield sound("ustar prefix", member(b"a.png", PNG, prefix=b"images/x"), "images/x/a.png")
    yield sound("base-256 size", _base256_member(), "b.png")
    yield sound("long name", gnu_long(b"L", b"n" * 200) + member(b"n" * 100, PNG), "n" * 200)
    yield sound("pax path", pax({b"path": "ü.png".encode()}) + member(b"x", PNG), "ü.png")
    yield sound("pax size", pax({b"size": b"%d" % len(PNG)}) + _sizeless(), "z.png")
    yield sound("pax times", pax({b"mtime": b"-1.5", b"atime": b"1"}) + GOOD, "images/a.png")
    yield sound("pax global comment", pax({b"comment": b"c"}, kind=b"g") + GOOD, "images/a.png")
    yield sound("volume label", header(b"label", kind=b"V") + GOOD, "images/a.png")
    yield sound("dots and slashes", member(b"./images//./a.png", PNG), "images/a.png")
    yield sound("backslashes", member(b"C:\\x\\..\\a.png", PNG), "C:\\x\\..\\a.png")
    yield sound("like an option", member(b"--help", PNG), "--help")
    yield sound("like a shell's", member(b"$(touch x);`y`.png", PNG), "$(touch x);`y`.png")
    yield sound("setuid bit", member(b"s.png", PNG, mode=0o6755), "s.png")
    yield sound("read-only folder first", header(b"images/", kind=b"5", mode=0o555) + GOOD)
    yield sound("the data folder itself", header(b"./", kind=b"5", mode=0) + GOOD)
    yield sound("duplicates", GOOD + member(b"images/a.png", b"last"), "images/a.png")
    yield sound("hard link inside", GOOD + header(b"h", kind=b"1", target=b"images/a.png"), "h")
    yield sound("sparse 1.0", _sparse_1(b"s", [(0, 2), (600, 2)], b"data", 1000), "s")
    yield sound("old sparse", _sparse_old([(512, 4)], b"data", 2000), "images/s")
    yield sound("zeros behind", GOOD + END + bytes(9216), "images/a.png")
    second = member(b"b.png", PNG)
    yield sound("a second tar behind the first", GOOD + END + second, "images/a.png", "b.png")
    record = GOOD + bytes(10_240 - len(GOOD))
    yield sound("tars in records", record + record + second, "images/a.png", "b.png")
    pax_global = pax({b"mtime": b"1"}, kind=b"g")
    yield sound("globals of the first tar", pax_global + GOOD + END + second, "b.png")
    yield sound("not in UTF-8", member(b"images/\xff.png", PNG))
    yield sound("empty members", member(b"e1") + member(b"e2"), "e1", "e2")
    yield sound("no members", b"")


def _base256_member() -> bytes:
    return header(b"b.png", size_field=base256(len(PNG))) + PNG + bytes(-len(PNG) % 512)


def _sizeless() -> bytes:
    return header(b"z.png", 0) + PNG + bytes(-len(PNG) % 512)


def _streams() -> Iterator[Case]:
    tar = GOOD + END
    packed = gzip.compress(tar, mtime=0)
    halves = gzip.compress(tar[:700], mtime=0) + gzip.compress(tar[700:], mtime=0)
    yield Case("gz sound", "s.tar.gz", packed, None, ("images/a.png",))
    yield Case("gz of several members", "m.tar.gz", halves, None, ("images/a.png",))
    yield Case("gz with an empty member", "e.tar.gz", gzip.compress(b"") + packed)
    yield Case("gz with zeros behind", "z.tar.gz", packed + bytes(512))
    yield Case("gz with garbage behind", "g.tar.gz", packed + b"garbage behind", BAD)
    yield Case("gz with garbage behind zeros", "zg.tar.gz", packed + bytes(9) + b"x" * 40, BAD)
    yield Case("gz without its trailer", "t.tar.gz", packed[:-8], BAD)
    yield Case("gz with half a trailer", "h.tar.gz", packed[:-3], BAD)
    yield Case("gz with a wrong CRC", "c.tar.gz", _flip(packed, len(packed) - 7), BAD)
    yield Case("gz with a wrong length", "l.tar.gz", _flip(packed, len(packed) - 2), BAD)
    yield Case("gz cut in the middle", "k.tar.gz", packed[: len(packed) // 2], BAD)
    yield Case("gz cut between members", "b.tar.gz", gzip.compress(tar[:700]), BAD)
    yield Case("gz with no tar in it", "n.tar.gz", gzip.compress(b"no tar" * 999), BAD)
    for ending, pack in COMPRESSIONS.items():
        data = pack(tar)
        yield Case(f"{ending} sound", f"s.tar.{ending}", data, None, ("images/a.png",))
        two = pack(tar[:700]) + pack(tar[700:])
        yield Case(f"{ending} of two streams", f"m.tar.{ending}", two, None, ("images/a.png",))
        yield Case(f"{ending} with garbage behind", f"g.tar.{ending}", data + b"garbage!", BAD)
        yield Case(f"{ending} cut short", f"t.tar.{ending}", data[:-4], BAD)
        yield Case(f"{ending} with zeros behind", f"z.tar.{ending}", data + bytes(512))
    skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc" + _zstd(tar)
    yield Case("zst with a frame to skip", "k.tar.zst", skipped, None, ("images/a.png",))
    yield Case(
        "gz of one file", "prompts.jsonl.gz", gzip.compress(b"{}\n"), None, ("prompts.jsonl",)
    )
    for ending, pack in COMPRESSIONS.items():
        one = pack(b'{"id": 1}\n' * 500)
        yield Case(f"{ending} of one file", f"a.jsonl.{ending}", one, None, ("a.jsonl",))
        yield Case(f"{ending} of one file, cut", f"x.jsonl.{ending}", one[:-5], BAD)
        yield Case(f"{ending} with no tar in it", f"n.tar.{ending}", pack(b"no tar" * 999), BAD)
    short = bz2.compress(tar)
    yield Case("bz2 with a tar's short ending", "s.tb2", short, None, ("images/a.png",))
    yield Case("bz2 without a known suffix", "s.dat", short, None, ("images/a.png",))
    yield Case("gz of one file, cut", "x.jsonl.gz", gzip.compress(b"{}\n" * 99)[:-5], BAD)


def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    options = {zstd.CompressionParameter.checksum_flag: 1}
    packed: bytes = zstd.compress(data, options=options)
    return packed


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


def _lz4(data: bytes) -> bytes:
    packed: bytes = lz4.frame.compress(data, content_checksum=True)
    return packed


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": _zstd,
    "lz4": _lz4,
    "lzma": _lzma,
}


def _zip(id: str, data: bytes, cause: Cause | None, *files: str, by_reader: bool = True) -> Case:
    return Case(f"zip {id}", f"{id.replace(' ', '-')}.zip", data, cause, files, by_reader)


def _zip_names() -> Iterator[Case]:
    for id, name in (
        ("absolute", b"/tmp/evil"),
        ("parent", b"../evil"),
        ("parent inside", b"a/../../evil"),
        ("control character", b"a\x07.png"),
        ("nul", b"a.png\0.txt"),
    ):
        yield _zip(f"name {id}", zip_of([Raw(name, PNG)]), UNSAFE, by_reader=False)
    raw = b"a.png"
    climbing = Raw(raw, PNG, extra=unicode_path(raw, b"../evil"))
    yield _zip("Unicode Path climbs", zip_of([climbing]), UNSAFE, by_reader=False)
    local = Raw(raw, PNG, local_extra=unicode_path(raw, b"b.png"))
    yield _zip("Unicode Path only local", zip_of([local]), BAD)
    other = Raw(raw, PNG, local_name=b"../a.png")
    yield _zip("another name in the local header", zip_of([other]), BAD)
    link = Raw(b"l", b"/etc/passwd", attributes=0o120777 << 16)
    yield _zip("symlink", zip_of([link]), UNSAFE, by_reader=False)
    huge = Raw(b"l", b"x" * 9999, attributes=0o120777 << 16)
    yield _zip("symlink with a long target", zip_of([huge]), BAD)
    fifo = Raw(b"f", b"", attributes=0o010644 << 16)
    yield _zip("fifo", zip_of([fifo]), UNSAFE)
    device = Raw(b"f", b"", attributes=0o060644 << 16)
    yield _zip("device", zip_of([device]), UNSAFE)


def _zip_structure() -> Iterator[Case]:
    good = Raw(b"images/a.png", PNG)
    sound = zip_of([good, Raw(b"b.png", PNG)])
    yield _zip("no end record", sound[:-22], BAD)
    yield _zip("cut in the directory", sound[:-60], BAD)
    yield _zip("garbage behind", zip_of([good], tail=b"garbage"), BAD)
    yield _zip("two end records", zip_of([good], comment=zip_of([])), BAD)
    yield _zip("counts too few", zip_of([good, good], count=1), BAD)
    yield _zip("counts too many", zip_of([good], count=9), BAD)
    yield _zip("counts far too many", zip_of([good], count=65534), BAD)
    yield _zip("directory elsewhere", zip_of([good], directory_shift=-4), BAD)
    yield _zip("something before it", b"#!/bin/sh\n" + zip_of([good]), BAD)
    yield _zip("wrong CRC", zip_of([Raw(b"a", PNG, crc=1)]), BAD)
    yield _zip("wrong CRC only local", zip_of([Raw(b"a", PNG, local_crc=1)]), BAD)
    yield _zip("wrong size only local", zip_of([Raw(b"a", PNG, local_size=1)]), BAD)
    yield _zip("claims less", zip_of([Raw(b"a", PNG, size=5)]), BAD)
    yield _zip("claims more", zip_of([Raw(b"a", PNG, size=len(PNG) + 1)]), BAD)
    yield _zip("claims more than deflate can", zip_of([Raw(b"a", b"x", size=90_000)]), BAD)
    yield _zip("claims more bytes than the file has", zip_of([Raw(b"a", PNG, stored=9999)]), BAD)
    yield _zip("stored claims more", zip_of([Raw(b"a", PNG, STORED, size=9999)]), BAD)
    flipped = _flip(good.bytes_stored, 20)
    yield _zip("flipped content", zip_of([Raw(b"a", PNG, content=flipped)]), BAD)
    short = good.bytes_stored[:-9]
    yield _zip("cut content", zip_of([Raw(b"a", PNG, content=short)]), BAD)
    yield _zip("overlap", zip_of([Raw(b"a", PNG), Raw(b"a", PNG, offset=0)]), BAD)
    inner = zip_of([Raw(b"a", PNG, STORED), Raw(b"b", PNG, STORED, offset=40)])
    yield _zip("an entry inside another", inner, BAD)
    yield _zip("offset beyond the end", zip_of([Raw(b"a", PNG, offset=1 << 30)]), BAD)
    yield _zip("a wrong descriptor", zip_of([Raw(b"a", PNG, flags=8, descriptor=b"x" * 16)]), BAD)
    yield _zip("encrypted", zip_of([Raw(b"a", PNG, flags=1)]), OTHER)
    yield _zip("strongly encrypted", zip_of([good, Raw(b"a", PNG, flags=0x41)]), OTHER)
    yield _zip("AES", zip_of([good, Raw(b"a", PNG, 99)]), OTHER)
    yield _zip("deflate64", zip_of([good, Raw(b"a", PNG, 9)]), OTHER)
    yield _zip("unknown method", zip_of([good, Raw(b"a", PNG, 77)]), OTHER)
    yield _zip("folder with content", zip_of([Raw(b"d/", PNG)]), BAD)
    yield _zip("of another disk", zip_of([Raw(b"a", PNG, disk=3)]), BAD)


def _zip_sound() -> Iterator[Case]:
    def sound(id: str, *entries: Raw, files: tuple[str, ...] = ("a.png",)) -> Case:
        return _zip(id, zip_of(entries), None, *files)

    good = Raw(b"a.png", PNG)
    yield sound("sound", good)
    yield sound("stored", Raw(b"a.png", PNG, STORED))
    yield sound("empty", files=())
    yield sound("empty member", Raw(b"a.png", b""))
    yield sound("descriptor", Raw(b"a.png", PNG, flags=8))
    packed = good.bytes_stored
    bare = struct.pack("<3L", zlib.crc32(PNG), len(packed), len(PNG))
    yield sound("descriptor without signature", Raw(b"a.png", PNG, flags=8, descriptor=bare))
    wide = struct.pack("<4sL2Q", b"PK\x07\x08", zlib.crc32(PNG), len(packed), len(PNG))
    yield sound("wide descriptor", Raw(b"a.png", PNG, flags=8, descriptor=wide))
    yield _zip("comment", zip_of([good], comment=b"a comment"), None, "a.png")
    yield _zip("zeros behind", zip_of([good], tail=bytes(100)), None, "a.png")
    yield _zip("gaps", zip_of([good, Raw(b"b.png", PNG)], gap=b"gap"), None, "a.png")
    yield sound("cp437", Raw(b"\x82.png", PNG), files=("é.png",))
    yield sound("UTF-8", Raw("é.png".encode(), PNG, flags=0x800), files=("é.png",))
    yield sound("UTF-8 unflagged by a Unix", Raw("é.png".encode(), PNG), files=("é.png",))
    path = unicode_path(b"\x82.png", "ж.png".encode())
    yield sound("Unicode Path", Raw(b"\x82.png", PNG, extra=path), files=("ж.png",))
    yield sound("folder of Java", Raw(b"d/", b""), good)
    yield sound("duplicates", Raw(b"a.png", b"first"), good)
    yield sound("setuid", Raw(b"a.png", PNG, attributes=0o106755 << 16))


def _bombs() -> Iterator[Case]:
    yield Case("claims 10 TB", "10tb.tar.gz", gzip.compress(GOOD + header(b"b", 10**13)), LARGE)
    field = base256(1 << 61)
    huge = gzip.compress(GOOD + header(b"b", size_field=field) + bytes(2048))
    yield Case("claims an exabyte", "eb.tar.gz", huge, LARGE)
    yield Case("sparse of 8 TB", "sp.tar", _sparse_1(b"s", [], b"", 8 << 40) + END, LARGE)
    old = _sparse_old([(0, 4)], b"data", (8 << 30) - 1)
    yield Case("old sparse of 8 GB", "os.tar", old + END, LARGE)
    yield Case("gz of zeros", "z.tar.gz", _zeros_gz, LARGE)
    yield Case("zeros behind the end mark", "ze.tar.gz", lambda: _zeros_gz(END), LARGE)
    yield Case("bz2 of zeros", "z.tar.bz2", _zeros_bz2, LARGE)
    zeros = bytes(1 << 20)
    packed = Raw(b"z", zeros).bytes_stored
    bomb = [Raw(b"z%d" % i, zeros, content=packed, crc=1) for i in range(150)]
    yield Case("zip of zeros", "z.zip", zip_of(bomb), LARGE)
    # Decoders that keep as much of the past as their formats let a small archive ask for.
    yield Case("xz of zeros", "z.tar.xz", lambda: xz_with_dictionary(_zeros(), 28), LARGE)
    yield Case("zst of zeros", "z.tar.zst", lambda: zst_with_window(_zeros(), 26), LARGE)
    greedy = "zst of zeros and a larger window"
    yield Case(greedy, "zw.tar.zst", lambda: zst_with_window(_zeros(), 27), OTHER)
    wide = xz_with_dictionary(GOOD + END, 30)
    yield Case("xz with a larger dictionary", "zd.tar.xz", wide, OTHER)


def _zeros() -> bytes:
    return member(b"z", bytes(1 << 20)) * 110


def _zeros_bz2() -> bytes:
    return bz2.compress(header(b"b", 110 << 20) + bytes(110 << 20) + END)


def _zeros_gz(start: bytes = b"") -> bytes:
    """1,000 to 1 all along, 300 MB of it, in small members, as a limit on each would miss it."""
    block = bytes(1 << 20) if start else member(b"z", bytes(1 << 20))
    packer = zlib.compressobj(9, wbits=-15)
    # After a full flush nothing refers to what was before, so that the block can be repeated.
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = functools.reduce(lambda crc, _: zlib.crc32(block, crc), range(300), zlib.crc32(start))
    size = len(start) + 300 * len(block)
    head = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"
    return head + first + again * 300 + packer.flush() + struct.pack("<2L", crc, size)


def _no_archives() -> Iterator[Case]:
    for id, data, cause in (
        ("an empty file", b"", BAD),
        ("a login page", b"<!DOCTYPE html><html><body>Sign in</body></html>", BAD),
        ("an error of an object store", b"<?xml version='1.0'?><Error/>", BAD),
        ("a JSON error", b'{"error": "Repository not found"}', BAD),
        ("a git-annex pointer", b"/annex/objects/MD5E-s9--0.tar\n", BAD),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", BAD),
        ("plain text", b"hello\n" * 200, BAD),
        ("rar", b"Rar!\x1a\x07\x01\0" + bytes(99), OTHER),
        ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), OTHER),
        ("legacy lz4", b"\x02\x21\x4c\x18" + bytes(99), OTHER),
        ("lzip", b"LZIP\x01\x0c" + bytes(99), OTHER),
        ("compress", b"\x1f\x9d\x90" + bytes(99), OTHER),
        ("cpio", b"070701" + b"0" * 99, OTHER),
        ("a program", b"MZ" + bytes(999), OTHER),
    ):
        yield Case(id, f"{id.replace(' ', '-')}.bin", data, cause)
