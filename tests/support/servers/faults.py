"""What can be wrong with one answer of a web server, as values that combine, and when it is."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

CAPTIVE_PORTAL = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Log in</body></html>\n"
)


@dataclass(frozen=True)
class Fault:
    """Deviations from a right answer; `a & b` has those of both.

    Byte counts are of the body of one answer; offsets are those of the whole file.
    """

    times: int | None = 1
    """How many requests it hits before the next step of its script; None: all."""
    method: str | None = "GET"
    """The method it hits; None: every one."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # header names to leave out
    body: bytes | None = None  # in place of the file; Range is then ignored
    content: bytes | None = None  # the file, changed; Range works on it
    etag: str | None = None  # None with `content`: the ETag changes as well
    location: str | None = None  # redirect there; "" means to itself
    digests: tuple[str, ...] = ()  # names of headers that carry a digest of the file
    digests_lie: bool = False

    ignore_range: bool = False
    range_label_shift: int = 0  # Content-Range says that much more than is sent
    range_shift: int = 0  # another range than was asked for, and rightly labelled
    length_shift: int = 0  # Content-Length is that much off
    framing: Literal["", "chunked", "close"] = ""  # no Content-Length
    gzip: bool = False  # Content-Encoding: gzip, asked for or not

    cut_after: int | None = None  # an orderly end of the connection (FIN)
    reset_after: int | None = None  # RST
    stall_after: int | None = None  # silence, until `WebServer.release`
    corrupt_at: int | None = None  # the byte at this offset has its lowest bit flipped
    bytes_per_s: float | None = None  # of one connection

    def __and__(self, other: Fault) -> Fault:
        """Both at once; where both say something, `other` wins, but headers add up."""
        named = {f.name: getattr(other, f.name) for f in fields(self)}
        plain = {f.name: getattr(FINE, f.name) for f in fields(self)}
        changes = {name: value for name, value in named.items() if value != plain[name]}
        changes["headers"] = {**self.headers, **other.headers}
        changes["without"] = self.without + other.without
        changes["digests"] = self.digests + other.digests
        return replace(self, **changes)


FINE = Fault()


def fine(times: int | None = 1) -> Fault:
    """Nothing is wrong: a step that lets so many requests pass."""
    return Fault(times=times)


def reset_after(count: int, times: int | None = 1) -> Fault:
    """The connection is reset (RST) after so many bytes of the body."""
    return Fault(times, reset_after=count)


def reset_every(count: int) -> Fault:
    """Every connection is reset after so many bytes of the body."""
    return reset_after(count, None)


def cut_after(count: int, times: int | None = 1) -> Fault:
    """The body ends after so many bytes; Content-Length had promised all of it."""
    return Fault(times, cut_after=count)


def stall_after(count: int, times: int | None = 1) -> Fault:
    """So many bytes, then nothing more, on an open connection."""
    return Fault(times, stall_after=count)


def corrupt_byte(offset: int, times: int | None = 1) -> Fault:
    """One bit of the byte at that offset of the file is wrong."""
    return Fault(times, corrupt_at=offset)


def status(code: int, times: int | None = 1, *, body: bytes = b"", **headers: str) -> Fault:
    """This status in place of the file; `Retry_After="1"` gives the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(times, method=None, status=code, body=body, headers=named)


def busy(times: int | None = 1, *, code: int = 503, retry_after: str | None = None) -> Fault:
    """429 or 503, with a Retry-After or without."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return replace(status(code, times), headers=headers)


def ignore_range(times: int | None = 1) -> Fault:
    """200 and the whole file, whatever range was asked for."""
    return Fault(times, ignore_range=True)


def wrong_content_range(shift: int, *, honest: bool = False) -> Fault:
    """Content-Range is off by `shift`; honest: so are the bytes, which belong to it."""
    return Fault(1, range_shift=shift) if honest else Fault(1, range_label_shift=shift)


def wrong_length(shift: int, times: int | None = 1) -> Fault:
    """Content-Length is off by `shift`, and the connection ends after the body."""
    return Fault(times, length_shift=shift, method=None)


def changed(content: bytes, times: int | None = None, *, etag: str | None = None) -> Fault:
    """The file is another one; with a new ETag, unless an old one is given here."""
    return Fault(times, method=None, content=content, etag=etag)


def redirect(location: str, times: int | None = None) -> Fault:
    """Go there."""
    return Fault(times, method=None, status=302, location=location, body=b"")


def redirect_loop() -> Fault:
    """Go here again."""
    return redirect("")


def html(times: int | None = 1) -> Fault:
    """200 and the page of a captive portal in place of the file."""
    kind = {"Content-Type": "text/html; charset=utf-8"}
    return Fault(times, method=None, body=CAPTIVE_PORTAL, headers=kind, without=("ETag",))


def no_length(framing: Literal["chunked", "close"], times: int | None = None) -> Fault:
    """No Content-Length: chunks, or a body that lasts until the connection is closed."""
    return Fault(times, method=None, framing=framing)


def without(*headers: str) -> Fault:
    """These headers are missing, such as ETag and Last-Modified."""
    return Fault(None, method=None, without=headers)


def gzipped(times: int | None = None) -> Fault:
    """Content-Encoding: gzip around the file, though nobody asked for it."""
    return Fault(times, method=None, gzip=True)


def attachment(filename: str) -> Fault:
    """A Content-Disposition that names the file, well or maliciously."""
    return Fault(None, None, headers={"Content-Disposition": f'attachment; filename="{filename}"'})


def digests(*names: str, lie: bool = False) -> Fault:
    """Headers with a digest of the file: Digest, Repr-Digest, Content-MD5, x-amz-checksum-*."""
    return Fault(None, None, digests=names, digests_lie=lie)


def throttle(bytes_per_s: float) -> Fault:
    """No connection gets more than this."""
    return Fault(None, bytes_per_s=bytes_per_s)


class Script:
    """Faults for the requests of some paths: each `add` is a layer of steps, taken in turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layers: list[tuple[str, str | None, list[Fault]]] = []

    def add(self, pattern: str, *steps: Fault, origin: str | None = None) -> None:
        """Let requests for a path (or a pattern with * and ?) go through these steps."""
        with self._lock:
            self._layers.append((pattern, origin, list(steps)))

    def clear(self) -> None:
        """From now on nothing is wrong."""
        with self._lock:
            self._layers.clear()

    def take(self, origin: str, method: str, path: str) -> Fault:
        """What is wrong with the answer to this request; uses one turn of each layer."""
        found = FINE
        with self._lock:
            for pattern, where, steps in self._layers:
                if where not in (None, origin) or not _matches(pattern, path) or not steps:
                    continue
                step = steps[0]
                if step.method not in (None, method):
                    continue
                if step.times is not None:
                    if step.times <= 1:
                        steps.pop(0)
                    else:
                        steps[0] = replace(step, times=step.times - 1)
                found = found & step
        return found


def _matches(pattern: str, path: str) -> bool:
    return pattern == path or fnmatch.fnmatchcase(path, pattern)
