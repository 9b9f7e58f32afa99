"""Tar archives byte by byte, so that every field can be wrong on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

END = bytes(1024)


def header(
    name: bytes,
    size: int = 0,
    *,
    kind: bytes = b"0",
    mode: int = 0o644,
    target: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    mtime: int = 1_700_000_000,
    size_field: bytes | None = None,
    signed: bool = False,
    checksum: int | None = None,
    tail: bytes | None = None,
) -> bytes:
    """One header; ``tail`` replaces all from byte 345 on, ``size_field`` the twelve bytes."""
    raw = bytearray(512)
    raw[0 : len(name[:100])] = name[:100]
    raw[100:108] = b"%07o\0" % mode
    raw[108:124] = b"0001750\x000001750\0"
    raw[124:136] = size_field if size_field is not None else b"%011o\0" % size
    raw[136:148] = b"%011o\0" % mtime
    raw[148:156] = b" " * 8
    raw[156:157] = kind
    raw[157 : 157 + len(target[:100])] = target[:100]
    raw[257 : 257 + len(magic)] = magic
    raw[345 : 345 + len(prefix)] = prefix
    if tail is not None:
        raw[345 : 345 + len(tail)] = tail
    if checksum is None:
        checksum = sum(byte - 256 if signed and byte > 127 else byte for byte in raw)
    raw[148:156] = b"%06o\0 " % checksum
    return bytes(raw)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    """A header and its content."""
    return header(name, len(data), **fields) + padded(data)  # type: ignore[arg-type]


def pax(
    records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], *, kind: bytes = b"x"
) -> bytes:
    """An extended header for the next member, or with kind g for all."""
    items = records.items() if isinstance(records, Mapping) else records
    return member(b"PaxHeaders/x", b"".join(pax_record(*item) for item in items), kind=kind)


def pax_record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def gnu_long(kind: bytes, name: bytes) -> bytes:
    """A GNU long name (kind L) or long link target (K) for the next member."""
    return member(b"././@LongLink", name + b"\0", kind=kind, magic=b"ustar  \0")


def base256(value: int) -> bytes:
    """A number in GNU's binary form."""
    data = bytearray(value.to_bytes(12, "big", signed=value < 0))
    data[0] |= 0x80
    return bytes(data)
