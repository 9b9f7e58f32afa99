"""Parses addresses: brace ranges, lists with names, and the names at their ends."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jobs.errors import Cause, SourceError
from jobs.model import Digest, Plan, SourceKind
from jobs.sources.base import key_of
from jobs.sources.file_names import digest_of
from jobs.sources.object_urls import is_object_url
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import origin_of, redact

MOST = 100_000  # addresses, at most; more are a mistake
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_DRIVE_FILE = re.compile(r"^/file(?:/u/\d+)?/d/([\w-]+)")
_HUB_PAGE = re.compile(r"/(?:datasets/|spaces/)?[^/]+/[^/]+(?:/(?:tree|viewer)(?:/.*)?)?/?")
# Pages of a record: https://zenodo.org/records/ID (InvenioRDM), https://figshare.com/articles/…/ID.
INVENIO_PAGE = re.compile(r"/records?/([A-Za-z0-9-]+)/?")
FIGSHARE_PAGE = re.compile(r"/articles/(?:[^/]+/)*?(\d+)(?:/\d+)?/?")
_PAGE_SITES = ("dropbox.com", "google.com", "huggingface.co", "hf.co", "github.com", "gitlab.com")
_COLUMN = re.compile(r"[A-Za-z_]+")  # a column's name in a list
_LETTERS = re.compile(r"([a-z])\.\.([a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ListedUrl:
    """A URL and, if a list has them, the name and the digest of its file."""

    url: str
    name: str | None = None
    digest: Digest | None = None

    @property
    def locator(self) -> str:
        """What ``addresses`` reads as this."""
        digest = self.digest.hex if self.digest else None
        return "\t".join(filter(None, (self.name, self.url, digest)))


def expand_braces(pattern: str) -> list[str]:
    """The addresses of a pattern: ``{00..99}``, ``{1..9..2}``, ``{a..d}``, ``{x,y}``.

    As in a shell: numbers keep their width with leading zeros, several braces give all
    combinations, braces around anything else stay. Raises ``SourceError`` (``USAGE``) for more than
    ``MOST`` addresses.
    """
    pieces: list[list[str]] = []
    end = 0
    count = 1
    for match in _BRACES.finditer(pattern):
        found = _choices(match[1], pattern)
        if found is None:
            continue
        count *= len(found)
        if count > MOST:
            raise _usage(f"{redact(pattern)} expands to more than {MOST} URLs; check its braces")
        pieces += [[pattern[end : match.start()]], found]
        end = match.end()
    urls = [""]
    for choices in [*pieces, [pattern[end:]]]:
        urls = [url + choice for url in urls for choice in choices]
    return urls


def _choices(inner: str, pattern: str) -> list[str] | None:
    if match := _NUMBERS.fullmatch(inner):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step < 1 or abs(last - first) // step >= MOST:
            raise _usage(f"{redact(pattern)} expands to more than {MOST} URLs; check its braces")
        padded = any(len(text) > 1 and text[0] == "0" for text in match.group(1, 2))
        width = max(len(match[1]), len(match[2])) if padded else 0
        direction = 1 if last >= first else -1
        return [str(n).zfill(width) for n in range(first, last + direction, step * direction)]
    if match := _LETTERS.fullmatch(inner):
        a, b = ord(match[1]), ord(match[2])
        direction = 1 if b >= a else -1
        return [chr(code) for code in range(a, b + direction, direction)]
    return inner.split(",") if "," in inner else None


def addresses(locators: Sequence[str]) -> list[ListedUrl]:
    """The addresses of a request; a locator may be that of a ``ListedUrl``, which has tabs.

    Raises ``SourceError`` as ``expand_braces`` and ``parse_url_list`` do.
    """
    found: list[ListedUrl] = []
    for locator in locators:
        if "\t" in locator:
            found += parse_url_list(locator)
        elif len(locator.split()) > 1 and not is_object_url(locator):  # keys may contain spaces
            raise _usage("--url contains a space; write it as %20, and give each URL with --url")
        else:
            found += [ListedUrl(url) for url in expand_braces(locator.strip())]
    return found


def without_digests(locators: Sequence[str]) -> tuple[str, ...]:
    """The locators of a request, without the digests of a list, which are of one state."""
    return tuple(
        replace(*parse_url_list(each), digest=None).locator if "\t" in each else each
        for each in locators
    )


def renewed(plan: Plan, locators: Sequence[str]) -> dict[str, str]:
    """New addresses of files of ``plan``, by ``key_of``: signatures in addresses expire.

    An address is that of the file whose name it has in a list, or else that has the same address
    apart from the query. Others are ignored, as the list may be that of a launch which chose some.
    Raises ``SourceError`` (``USAGE``) if none is a file's, or one may be that of several.
    """
    by_name: dict[str | None, list[str]] = {}
    by_address: dict[str, list[str]] = {}
    for shard in plan.shards if plan.source.kind is SourceKind.URL else ():
        for index, file in enumerate(shard.files):
            by_name.setdefault(file.name, []).append(key_of(shard.id, index))
            by_address.setdefault(file.locator, []).append(key_of(shard.id, index))
    found: dict[str, str] = {}
    for address in addresses(locators):
        keys = by_name.get(address.name) or by_address.get(redact(address.url), [])
        if len(keys) > 1 or not found.keys().isdisjoint(keys):
            raise _usage(
                f"{redact(address.url)} may be the address of several files; write before each "
                "address the name that its file has in the run"
            )
        found.update(dict.fromkeys(keys, address.url.partition("#")[0]))
    if not found:
        raise _usage(
            "--url-list has no address of a file of the run; list the addresses of its files, with "
            "the names that they have in the run if more than the query has changed"
        )
    return found


def may_have_expired(error: SourceError, urls: Iterable[str]) -> bool:
    """Whether a server may have refused one of ``urls`` because its signature has expired.

    Then Google answers with status 400, others with 401, 403, 404 or 410.
    """
    is_refusal = re.search("answered with status 4(00|01|03|04|10)", error.message)
    return is_refusal is not None and any("?" in url for url in urls)


def parse_url_list(text: str) -> tuple[ListedUrl, ...]:
    """The addresses of a list: one on each line; ``#`` begins a comment.

    A line may also have a name, which is a path relative to the dataset, such as ``images/1.tar``,
    and a digest in hexadecimal digits. The first line may have the names of the columns
    (``file_name cdn_link``). If it has only a URL, braces work as in ``expand_braces``. Raises
    ``SourceError`` (``USAGE``) with the line's number.
    """
    found: list[ListedUrl] = []
    has_columns = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip().lstrip("\ufeff")
        if not line or line.startswith("#"):
            continue
        words = re.split(r"\t+|\s+", line)
        comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
        words = words[:comment]
        urls = [word for word in words if _is_url(word)]
        digests = [word for word in words if digest_of(word)]
        names = [word for word in words if word not in (*urls, *digests)]
        if words == urls and len(urls) == 1:
            found += [ListedUrl(url) for url in expand_braces(words[0])]
        elif len(urls) == 1 and max(len(names), len(digests)) < 2 and _may_follow(words, urls[0]):
            name = _checked_name(names[0], number) if names else None
            found.append(ListedUrl(urls[0], name, digest_of(digests[0]) if digests else None))
        elif (
            2 <= len(words) <= 3
            and all(map(_COLUMN.fullmatch, words))
            and not (found or has_columns)
        ):
            has_columns = True
        else:
            raise _usage(
                f"line {number} of the list of URLs is not a URL, alone or with a name and a "
                "digest; write one per line, and a space within a URL as %20"
            )
    if not found:
        raise _usage("the list of URLs is empty; write one URL per line")
    return tuple(found)


def check(url: str) -> None:
    """Raise ``SourceError`` (``USAGE``) for anything but an http(s) address."""
    if url.startswith("hf://"):
        raise _usage(f"{quoted(url)} is an address of the Hugging Face Hub; give it to --hf-repo")
    if not is_http(url):
        # Without a scheme, a user and a password are not recognized as such.
        raise _usage(
            f"{quoted(redact(url).rpartition('@')[2])} is not an http or https URL, nor one of "
            "an object store (s3://, gs://, az://); check --url, or copy the files with a program "
            "for such addresses (such as rclone) and launch with --local-path"
        )


def check_sha256(values: Sequence[str], urls: int) -> None:
    """Raise ``SourceError`` (``USAGE``) if the values of ``--sha256`` do not fit ``urls`` URLs."""
    if values and len(values) != urls:
        raise _usage(
            f"{len(values)} --sha256 were given for {urls} URLs; give one for each URL, in the "
            "same order"
        )
    for value in values:
        if not _SHA256.fullmatch(value):
            raise _usage(
                f"--sha256 {quoted(value)} is not a SHA-256; it must have 64 hexadecimal digits"
            )


def check_no_page(url: str) -> None:
    """Raise ``SourceError`` (``USAGE``) for an address that is a page's by its form.

    Sends no request.
    """
    parts = urllib.parse.urlsplit(url)
    site = ".".join((parts.hostname or "").lower().split(".")[-2:])
    # Google Drive's /uc returns small files directly.
    if site in _PAGE_SITES and parts.path != "/uc" and (hint := page_hint(url)):
        raise _usage(f"{redact(url)} is the address of a page, not of a file; {hint}")


def page_message(url: str) -> str:
    """A message for an address that returns a page instead of a file."""
    hint = page_hint(url) or (
        "is it a login, an error, a page with a download button? Open it in a browser and take "
        "the address of the file itself"
    )
    return f"{redact(url)} returns a web page, not a file; {hint}"


def page_hint(url: str) -> str | None:
    """What to write instead of an address that is a page's by its form; None for others."""
    parts = urllib.parse.urlsplit(url)
    path, host = parts.path, (parts.hostname or "").lower()
    query = urllib.parse.parse_qs(parts.query)
    dropbox = host in ("dropbox.com", "www.dropbox.com") and not query.keys() & {"dl", "raw"}
    if dropbox or query.get("dl") == ["0"]:
        return "replace dl=0 at its end with dl=1 (Dropbox)"
    drive = _DRIVE_FILE.match(path)
    if drive or (host == "drive.google.com" and "id" in query):
        return (
            "write https://drive.usercontent.google.com/download?confirm=t&id="
            f"{drive[1] if drive else 'ID'} instead (Google Drive)"
        )
    if host == "drive.google.com" and "/folders/" in path:
        return "copy that folder with rclone or gdown, and give the copy as --local-path"
    if is_record_page(url):
        return "if it is a record of Zenodo, Figshare or a Dataverse, give it, or its DOI, to --doi"
    if "/-/blob/" in path:
        return "write /-/raw/ instead of /-/blob/ (GitLab)"
    if host.endswith("github.com") and "/blob/" in path:
        return "write /raw/ instead of /blob/ (GitHub)"
    if host in ("huggingface.co", "hf.co") and _HUB_PAGE.fullmatch(path):
        return "give it to --hf-repo (Hugging Face Hub)"
    if "/blob/" in path:
        return "write /resolve/ instead of /blob/, or give it to --hf-repo (Hugging Face Hub)"
    return None


def is_record_page(url: str) -> bool:
    """Whether an address is, by its form, a record's page at a repository with DOIs."""
    path = urllib.parse.urlsplit(url).path
    is_page = INVENIO_PAGE.fullmatch(path) or FIGSHARE_PAGE.fullmatch(path)
    return bool(is_page or persistent_id(url))


def persistent_id(url: str) -> str | None:
    """The DOI in the address of a Dataverse page."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    value = query.get("persistentId", [""])[0]
    return value.removeprefix("doi:") if value.startswith("doi:") else None


def check_distinct(addresses: Sequence[ListedUrl]) -> None:
    """Raise ``SourceError`` (``USAGE``) for a duplicate address: its records would be duplicated.

    Only the user knows which of the two is a mistake.
    """
    seen: dict[object, int] = {}
    for number, address in enumerate(addresses, 1):
        parts = urllib.parse.urlsplit(address.url)
        key = (origin_of(address.url), parts.path or "/", parts.query)
        if key in seen:
            raise _usage(
                f"{redact(address.url)} is given twice (as number {seen[key]} and {number} of "
                f"{len(addresses)}); did you mean another one? Remove one of them"
            )
        seen[key] = number


def last_name(url: str) -> str:
    """The last part of an address's path, decoded; empty if it ends in a slash."""
    return _printable(_path(url).rpartition("/")[2])


def folder_name(url: str) -> str:
    """The part before the last one; empty if there is none."""
    return _printable(_path(url).rpartition("/")[0].rpartition("/")[2])


def _path(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path).rstrip("/")


def _printable(name: str) -> str:
    return "".join(c for c in name if c.isprintable()) if name not in (".", "..") else ""


def has_secret(url: str) -> bool:
    """Whether a URL has parts that ``redact`` removes."""
    return redact(url) != url


def _is_url(text: str) -> bool:
    return is_object_url(text) or is_http(text)


def is_http(text: str) -> bool:
    """Whether ``text`` is an http(s) address."""
    try:
        return bool(origin_of(text))
    except ValueError:  # such as an invalid port
        return False


def _may_follow(words: Sequence[str], url: str) -> bool:
    """Whether what follows the URL cannot be the end of one with a space."""
    after = words[words.index(url) + 1 :]
    return not any(re.search(r"[?]|://", word) for word in after)


def _checked_name(name: str, line: int) -> str:
    if name.isdecimal():
        raise _usage(
            f"line {line} of the list of URLs: {quoted(name)} would be the file's name; if it is "
            "its size or number, remove that column, else write the name with its ending"
        )
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise _usage(f"line {line} of the list of URLs: {quoted(name)} is not a relative name")
    return name


def _usage(message: str) -> SourceError:
    return SourceError(message, cause=Cause.USAGE)
