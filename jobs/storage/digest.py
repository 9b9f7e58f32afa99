"""Hash functions by name: those that sources publish and those that manifests contain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from jobs import extras


class Hasher(Protocol):
    """The interface of a hash; the objects of ``hashlib`` have it."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class Crc:
    """A cyclic redundancy check; ``function``: of data and the value before them."""

    def __init__(self, function: Callable[[Any, int], int], name: str) -> None:
        self._function = function
        self._digits = HEX_LENGTHS[name]
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"


class Crc32(Crc):
    """CRC-32 of zip and gzip (ISO 3309), computed by ISA-L: 2 % of an extraction's time."""

    def __init__(self) -> None:
        from isal import isal_zlib

        super().__init__(isal_zlib.crc32, "crc32")


class Sums:
    """What a manifest says of some bytes: their number, CRC-32, and digest by ``algorithm``."""

    def __init__(self, algorithm: str) -> None:
        self.size = 0
        self._crc32 = Crc32()
        self._other = None if algorithm == "crc32" else new(algorithm)

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self.size += len(data)
        self._crc32.update(data)
        if self._other is not None:
            self._other.update(data)

    @property
    def crc32(self) -> str:
        return self._crc32.hexdigest()

    @property
    def digest(self) -> str | None:
        """None if the algorithm is CRC-32."""
        return None if self._other is None else self._other.hexdigest()

    @classmethod
    def of(cls, algorithm: str, blocks: Iterable[bytes | memoryview]) -> Sums:
        """Those of all ``blocks``."""
        sums = cls(algorithm)
        for block in blocks:
            sums.update(block)
        return sums


def of(algorithm: str, blocks: Iterable[bytes | memoryview]) -> str:
    """The digest of all ``blocks`` in hex."""
    hasher = new(algorithm)
    for block in blocks:
        hasher.update(block)
    return hasher.hexdigest()


def _blake3() -> Hasher:
    try:
        from blake3 import blake3
    except ImportError as error:
        raise extras.BLAKE3.missing() from error
    return blake3()  # type: ignore[return-value]  # its stubs return blake3, not None


# The checks of object stores that only ``anycrc`` computes, by their names in its catalogue,
# https://reveng.sourceforge.io/crc-catalogue/all.htm
_OF_STORES = {"crc32c": "CRC32-ISCSI", "crc64nvme": "CRC64-NVME"}


def _of_store(name: str) -> Hasher:
    try:
        import anycrc
    except ImportError as error:
        raise extras.CRC.missing() from error
    return Crc(anycrc.Model(_OF_STORES[name]).calc, name)


def is_computed(algorithm: str) -> bool:
    """Whether this Python can compute that digest of a source."""
    return algorithm not in _OF_STORES or extras.CRC.is_installed()


HEX_LENGTHS = {
    "crc32": 8,
    "crc32c": 8,
    "crc64nvme": 16,
    "md5": 32,
    "sha1": 40,
    "git-sha1": 40,
    "sha256": 64,
    "sha512": 128,
    "blake3": 64,
}


def new(algorithm: str, *, size: int | None = None) -> Hasher:
    """A new hasher for ``algorithm``, one of ``HEX_LENGTHS``.

    ``git-sha1`` is git's blob id, which hashes the size (in bytes) first and so needs it:
    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    Raises ``ValueError`` for an unknown name, ``UsageError`` if its package is not installed.
    """
    if algorithm == "crc32":
        return Crc32()
    if algorithm == "blake3":
        return _blake3()
    if algorithm in _OF_STORES:
        return _of_store(algorithm)
    import hashlib  # loads OpenSSL, which the hashes above do not need

    if algorithm == "git-sha1":
        if size is None:
            raise ValueError("a git blob id needs the size of the file")
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if algorithm in ("md5", "sha1"):
        return hashlib.new(algorithm, usedforsecurity=False)
    if algorithm in ("sha256", "sha512"):
        return hashlib.new(algorithm)
    raise ValueError(f"unknown digest {algorithm!r}; known: {', '.join(HEX_LENGTHS)}")
