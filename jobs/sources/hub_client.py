"""Wraps the Hub's client, and adds timeouts, retries, and errors with a next step."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.errors import Cause, SourceError
from jobs.sources import file_names
from jobs.storage.safe_paths import quoted
from jobs.transfer.rate_limits import retry_after_s
from jobs.transfer.responses import RetryLater, until_answered
from jobs.transfer.target import origin_of, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PUBLIC = "https://huggingface.co"
TIMEOUT_S = 30.0
_ATTEMPTS = 5
_MOST_WAIT_S = 60.0  # at launch a user is waiting
_BUSY = (408, 425, 429, 500, 502, 503, 504)
# Raised by the client for JSON that has another form than the Hub's.
_OTHER_FORM = (KeyError, TypeError, AttributeError)
_TYPES = ("dataset", "model", "space")

T = TypeVar("T")


@dataclass(frozen=True)
class Repo:
    """A repository at an endpoint; without a token, which each call looks up."""

    id: str
    repo_type: str
    endpoint: str  # without a login

    @property
    def address(self) -> str:
        """The endpoint, with the login that ``HF_ENDPOINT`` may have: never show or store it."""
        own = _endpoint()
        return own if redact(own) == self.endpoint else self.endpoint

    @property
    def page(self) -> str:
        """The address of its web page."""
        folder = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.endpoint}/{folder}{self.id}"

    def __str__(self) -> str:
        return f"{self.repo_type} {quoted(self.id)} on {self.endpoint}"


def endpoint() -> str:
    """The Hub's address: the current ``HF_ENDPOINT``, without a login, or the public one."""
    try:
        origin_of(_endpoint())
    except ValueError:
        raise SourceError(
            f"HF_ENDPOINT is not an http or https URL, such as {PUBLIC}; correct or unset it",
            cause=Cause.USAGE,
        ) from None
    return redact(_endpoint())


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def check_online() -> None:
    """Raise ``SourceError`` if ``HF_HUB_OFFLINE`` forbids requests to the Hub."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if _is_set(name):
            raise SourceError(
                f"{name} is set, so the Hub is not contacted; unset it, or use files on disk "
                "with --local-path",
                cause=Cause.NETWORK,
            )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "on", "yes", "true")


def token() -> str | None:
    """The user's token, as the client finds it, with the current ``HF_TOKEN_PATH``.

    None also if the user wants none to be sent, such as to a mirror.
    """
    import huggingface_hub

    if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    path = os.environ.get("HF_TOKEN_PATH")
    if path and not os.environ.get("HF_TOKEN"):
        try:
            return Path(path).expanduser().read_text(encoding="utf-8").strip() or None
        except OSError as error:
            raise SourceError(
                f"HF_TOKEN_PATH names {quoted(path)}, which cannot be read "
                f"({error.strerror}); log in with `hf auth login`, or unset it",
                cause=Cause.AUTHENTICATION,
            ) from error
    return huggingface_hub.get_token()


def headers() -> dict[str, str]:
    """The headers of a request to the Hub, including the token: never show or store them."""
    from jobs import __version__

    known = token()
    login = {"Authorization": f"Bearer {known}"} if known else {}
    return {"User-Agent": f"websight-orchestrate/{__version__}", **login}


def api(repo: Repo) -> HfApi:
    """A client for the repository's endpoint; all its requests have a timeout.

    Raises ``SourceError`` if the proxy, or the file of certificates, in the environment cannot be
    used.
    """
    import huggingface_hub

    try:
        _add_timeouts()
    except Exception as error:  # while the client reads the environment
        from jobs.transfer import connection  # loads requests

        fault: str | None = connection.UNFIT_PROXY
        if isinstance(error, OSError):
            fault = connection.certificates_fault(connection.CERTIFICATES_OF_HUB)
        if fault is None:
            raise
        reached = f"{repo.endpoint} cannot be reached"
        raise SourceError(f"{reached}: {fault}", cause=Cause.USAGE) from None
    for name in ("httpx", "httpx2", "httpcore", "httpcore2"):
        # These log the complete address of each request, including signatures.
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub.HfApi(endpoint=repo.address, token=token() or False)


def _add_timeouts() -> None:
    """Set a timeout by a hook, because the client passes ``timeout=None`` in most calls."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _put_timeout not in hooks["request"]:
        get_session().event_hooks = {**hooks, "request": [*hooks["request"], _put_timeout]}


def _put_timeout(request: Any) -> None:
    kinds = ("connect", "read", "write", "pool")
    request.extensions = {**request.extensions, "timeout": dict.fromkeys(kinds, TIMEOUT_S)}


def with_retries(repo: Repo, ask: Callable[[], T]) -> T:
    """Call ``ask``; tries again with growing pauses if the Hub is busy or unreachable.

    Raises ``SourceError`` without the client's error as its cause, which contains the token.
    """
    check_online()

    def request() -> T:
        with _quiet():
            answer = _asked(repo, ask)
        if isinstance(answer, (SourceError, RetryLater)):
            raise answer  # here: without the client's error as its context
        return answer

    return until_answered(request, attempts=_ATTEMPTS, pause_s=0.5, most_wait_s=_MOST_WAIT_S)


def _asked(repo: Repo, ask: Callable[[], T]) -> T | SourceError | RetryLater:
    """The result, or the error: ``RetryLater`` if trying again may help."""
    from huggingface_hub.errors import HfHubHTTPError

    transport = _transport_error()
    try:
        return ask()
    except HfHubHTTPError as error:
        reply = error.response
        status = reply.status_code if reply is not None else 0
        explained = _explained(repo, error, status)
        if status not in _BUSY:
            return explained
        return RetryLater(explained, wait_s=retry_after_s(reply.headers))
    except transport as error:
        explained = SourceError(
            f"{repo.endpoint} cannot be reached ({type(error).__name__}); check the network, "
            "HF_ENDPOINT and the proxy variables (HTTPS_PROXY), then launch again",
            cause=Cause.NETWORK,
        )
    except (json.JSONDecodeError, *_OTHER_FORM):
        explained = SourceError(
            f"{repo.endpoint} does not respond like the Hub (is it the page of a proxy or a "
            "login?); check the network and HF_ENDPOINT, then launch again",
            cause=Cause.NETWORK,
        )
    except ValueError as error:  # HFValidationError: the name itself
        return _bad_name(repo, error)
    return RetryLater(explained)


def _transport_error() -> type[Exception]:
    """The base of the client's errors: of httpx, or since 2.0 of httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")


def _bad_name(repo: Repo, error: Exception) -> SourceError:
    return SourceError(
        f"{quoted(repo.id)} is not the name of a repository ({type(error).__name__}); write "
        "ORGANISATION/NAME",
        cause=Cause.USAGE,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the client's warnings on retries, which contain the address."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _explained(repo: Repo, error: Exception, status: int) -> SourceError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return gated(repo)
    if isinstance(error, RepositoryNotFoundError) and (status == 404 or token() is None):
        return SourceError(
            f"{repo}: not found, or not visible to you; {_who()}check its name and --repo-type",
            cause=Cause.NOT_FOUND,
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceError(f"{repo} has no such revision", cause=Cause.NOT_FOUND)
    if status == 401:
        return SourceError(
            f"{repo.endpoint} does not accept your token, which is wrong or expired; log in "
            "again with `hf auth login`, or correct HF_TOKEN",
            cause=Cause.AUTHENTICATION,
        )
    if status == 403:
        return SourceError(
            f"{repo}: your token is not allowed to read it; grant it read access at "
            f"{repo.endpoint}/settings/tokens",
            cause=Cause.AUTHENTICATION,
        )
    if status == 429:
        return SourceError(
            f"{repo.endpoint} limits the rate of requests (status 429); launch again in five "
            f"minutes{'' if token() else ', or log in to raise the limit'}",
            cause=Cause.RATE_LIMITED,
        )
    if status in _BUSY:
        return SourceError(
            f"{repo.endpoint} reports an error (status {status}); launch again later",
            cause=Cause.NETWORK,
        )
    return SourceError(f"{repo}: the Hub answered with status {status}; launch again later")


def _who() -> str:
    if token() is None:
        return (
            "you are not logged in, so private ones are hidden: log in with `hf auth login` or "
            "set HF_TOKEN; else "
        )
    return "you are logged in; "


def gated(repo: Repo) -> SourceError:
    """The error for a repository whose terms have to be accepted."""
    first = "" if token() else "log in with `hf auth login` or set HF_TOKEN, then "
    return SourceError(
        f"{repo} is gated: {first}accept its terms at {repo.page}, wait for approval if it is "
        "required, and try again",
        cause=Cause.GATED,
    )


def near_repos(repo: Repo, client: HfApi) -> str:
    """Similar repositories, for a message; empty if none is found."""
    try:
        for other in _TYPES:
            if other != repo.repo_type and client.repo_exists(repo.id, repo_type=other):
                return f"; there is a {other} of that name: use --repo-type {other}"
        owner = repo.id.partition("/")[0]
        lists: dict[str, Callable[..., Any]] = {
            "dataset": client.list_datasets,
            "model": client.list_models,
            "space": client.list_spaces,
        }
        known = [info.id for info in lists[repo.repo_type](author=owner, limit=500)]
        return file_names.similar_names(repo.id, known)
    except (_transport_error(), OSError, ValueError, *_OTHER_FORM):
        return ""  # without a hint
