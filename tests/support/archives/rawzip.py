"""Zip archives byte by byte, so that every field can be wrong on purpose."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

STORED, DEFLATE = 0, 8


@dataclass
class Raw:
    """An entry; None: the correct value."""

    name: bytes
    data: bytes = b""
    method: int = DEFLATE
    flags: int = 0
    crc: int | None = None
    size: int | None = None  # claimed in both headers
    stored: int | None = None  # likewise
    content: bytes | None = None  # the stored bytes
    local_name: bytes | None = None
    local_size: int | None = None
    local_crc: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    attributes: int = 0o100644 << 16
    made_by: int = 3 << 8 | 20
    offset: int | None = None  # claimed by the directory
    descriptor: bytes | None = None  # behind the content
    disk: int = 0

    @property
    def bytes_stored(self) -> bytes:
        if self.content is not None:
            return self.content
        if self.method != DEFLATE:
            return self.data
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()


def zip_of(
    entries: Sequence[Raw],
    *,
    comment: bytes = b"",
    count: int | None = None,
    directory_shift: int = 0,
    tail: bytes = b"",
    gap: bytes = b"",
) -> bytes:
    """The archive; ``count`` and ``directory_shift`` falsify the end record."""
    body, records = bytearray(), bytearray()
    for raw in entries:
        content = raw.bytes_stored
        crc = zlib.crc32(raw.data) if raw.crc is None else raw.crc
        size = len(raw.data) if raw.size is None else raw.size
        stored = len(content) if raw.stored is None else raw.stored
        local_name = raw.name if raw.local_name is None else raw.local_name
        offset = len(body) if raw.offset is None else raw.offset
        streamed = raw.flags & 8
        body += struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            20,
            raw.flags,
            raw.method,
            0x6000,
            0x5821,
            0 if streamed else crc if raw.local_crc is None else raw.local_crc,
            0 if streamed else stored,
            0 if streamed else size if raw.local_size is None else raw.local_size,
            len(local_name),
            len(raw.local_extra),
        )
        body += local_name + raw.local_extra + content
        if streamed:
            right = struct.pack("<4s3L", b"PK\x07\x08", crc, stored, size)
            body += right if raw.descriptor is None else raw.descriptor
        body += gap
        records += struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            raw.made_by,
            20,
            raw.flags,
            raw.method,
            0x6000,
            0x5821,
            crc,
            stored,
            size,
            len(raw.name),
            len(raw.extra),
            0,
            raw.disk,
            0,
            raw.attributes,
            offset,
        )
        records += raw.name + raw.extra
    number = len(entries) if count is None else count
    end = struct.pack(
        "<4s4H2LH",
        b"PK\x05\x06",
        0,
        0,
        number,
        number,
        len(records),
        len(body) + directory_shift,
        len(comment),
    )
    return bytes(body + records + end + comment + tail)


def unicode_path(raw_name: bytes, name: bytes) -> bytes:
    """The Info-ZIP Unicode Path field."""
    data = struct.pack("<BL", 1, zlib.crc32(raw_name)) + name
    return struct.pack("<2H", 0x7075, len(data)) + data
