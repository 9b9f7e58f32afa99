"""An address with its headers, which are never shown, and the result of a transfer."""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.model import Digest

_PORTS = {"http": 80, "https": 443}
_SHOWN = 200  # characters of a name in a message, at most
# Of a path and a query that need no escapes (RFC 3986, 3.3 and 3.4).
_is_escaped = re.compile(r"(?:[\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*", re.ASCII).fullmatch


@dataclass(frozen=True, repr=False)
class Target:
    """The address of a file. ``headers`` are sent to the origin of ``url`` only."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Target({redact(self.url)!r})"


@dataclass(frozen=True)
class Received:
    """A complete file under its final name."""

    size: int  # bytes
    sha256: Digest
    verified: bool  # against a digest that the source published


def redact(url: str) -> str:
    """``url`` without query, fragment, user and password, for messages."""
    try:
        parts = urllib.parse.urlsplit(url)
        where = parts.netloc.rpartition("@")[2]
        return urllib.parse.urlunsplit((parts.scheme, where, parts.path, "", ""))
    except ValueError:
        return "an invalid address"


def hide_addresses(*libraries: str) -> None:
    """Have these libraries log only errors, unless the user has set their levels.

    Their messages, also warnings, have complete addresses, with signatures in their queries.
    """
    for name in libraries:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)


def as_given(prepared: str, url: str) -> str:
    """``prepared`` with the path and query of ``url``, if that has a query.

    A signature in the query is for the path as it is; requests removes ``/../`` and some escapes.
    """
    parts = urllib.parse.urlsplit(url)
    if not (parts.query and _is_escaped(parts.path) and _is_escaped(parts.query)):
        return prepared
    sent = urllib.parse.urlsplit(prepared)
    return sent._replace(path=parts.path or "/", query=parts.query).geturl()


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; ``ValueError`` if ``url`` is not an http(s) address."""
    parts = urllib.parse.urlsplit(url)
    scheme, host = parts.scheme.lower(), parts.hostname
    if scheme not in _PORTS or not host:
        raise ValueError("not an http or https address")
    return scheme, host, parts.port or _PORTS[scheme]


def quoted_url(name: str) -> str:
    """``name`` for a message: on one line, without control characters."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
