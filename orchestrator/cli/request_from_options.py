"""Makes a launch request of the command line's options."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import click

from jobs.errors import UsageError
from jobs.model import Layout, Options, Output, Resources, SourceKind, Verify
from jobs.outputs import registry
from jobs.sources.base import SourceRequest
from jobs.sources.object_urls import is_object_url
from orchestrator.api import LaunchRequest
from orchestrator.cli import options
from orchestrator.lifecycle.request import override


def request(values: dict[str, Any]) -> LaunchRequest:
    """The request of the options of ``launch``; ``UsageError`` if they are inconsistent."""
    paths = (values[name] for name in ("dest", "temp_dir", "log_dir", "local_path"))
    resources = options.with_mounts(options.slurm_changes(values), *paths)
    values["header_env"] = tuple(_header(text) for text in values["headers"])
    values["layout"] = _layout(values)
    values["folder_times"] = values["preserve_times"] is not False
    return LaunchRequest(
        source=_source(values),
        options=_options(values),
        resources=override(Resources(), resources),
        **_fields(LaunchRequest, values),
    )


def _fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that are fields of ``kind`` by the same name."""
    return {name: values[name] for name in kind.__match_args__ if name in values}  # type: ignore[attr-defined]


def _layout(values: dict[str, Any]) -> Layout:
    """The layout of the options; with ``--records-file`` only that file is used."""
    name, records = values["layout_name"], values["records_file"]
    if name == "auto" and records:
        name = "websight"
    return Layout(
        name=name,
        records=posixpath.normpath(records or Layout().records),
        images=posixpath.normpath(values["images_dir"]),
        image_field=values["image_field"] or None,
    )


def _header(text: str) -> tuple[str, str]:
    name, equals, variable = text.partition("=")
    if not (equals and name.strip() and variable.isidentifier()):
        # Without the text, which may be the secret.
        raise UsageError(
            "--header takes NAME=VARIABLE, the name of an environment variable that holds the "
            "value; a value on the command line would be visible to everybody on this machine"
        )
    return name.strip(), variable


# Options that only some kinds of sources have: the parameter, and the kinds.
_BELONGS = {
    "--hf-file": ("hf_files", (SourceKind.HUB,)),
    "--revision": ("revision", (SourceKind.HUB, SourceKind.DOI)),
    "--sha256": ("sha256", (SourceKind.URL, SourceKind.STORE)),
    "--header": ("headers", (SourceKind.URL, SourceKind.DOI)),
}


def _source(values: dict[str, Any]) -> SourceRequest:
    kind, given, locators = _locators(values)
    for option, (name, kinds) in _BELONGS.items():
        if values[name] and kind not in kinds:
            raise UsageError(f"{option} cannot be combined with {given}")
    return SourceRequest(
        kind=kind,
        locators=locators,
        files=values["hf_files"],
        exclude=values["exclude_files"],
        **_fields(SourceRequest, values),
    )


def _locators(values: dict[str, Any]) -> tuple[SourceKind, str, tuple[str, ...]]:
    """The source of the options: its kind, its option for messages, and its locators."""
    urls = [*values["urls"], *url_list(values["url_list"])]
    sources: list[tuple[SourceKind, str, tuple[str, ...]]] = []
    if values["hf_repo"]:
        sources.append((SourceKind.HUB, "--hf-repo", (values["hf_repo"],)))
    # A line of a list may begin with a name and end with a digest.
    if any(is_object_url(word) for url in urls for word in url.split("\t")):
        sources.append((SourceKind.STORE, "--url of an object store", tuple(urls)))
    elif urls:
        sources.append((SourceKind.URL, "--url", tuple(urls)))
    if values["doi"]:
        sources.append((SourceKind.DOI, "--doi", (values["doi"],)))
    if values["local_path"]:
        _check_no_url("--local-path", str(values["local_path"]), "give URLs to --url")
        path = str(values["local_path"].absolute())
        sources.append((SourceKind.LOCAL, "--local-path", (path,)))
    if len(sources) != 1:
        raise UsageError(
            "launch needs exactly one source: --hf-repo REPO, --url URL (or --url-list FILE), "
            f"--doi DOI, or --local-path PATH; {'none' if not sources else 'more than one'} was "
            "given"
        )
    return sources[0]


def url_list(path: str | None) -> list[str]:
    """The lines of ``--url-list``."""
    from jobs.sources.url_lists import parse_url_list

    if not path:
        return []
    _check_no_url("--url-list", path, "save the list in a file first")
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return [each.locator for each in parse_url_list(file.read())]
    except OSError as error:
        raise UsageError(
            f"--url-list {path} cannot be read: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--url-list {path} cannot be read as UTF-8 text ({error}); save it as UTF-8"
        ) from error


def _check_no_url(option: str, path: str, step: str) -> None:
    """``UsageError`` for a URL in place of a path, without the URL, which may have a secret."""
    if re.match("[a-z0-9]{2,}:/", path):
        raise UsageError(f"{option} takes a path on this machine, not a URL; {step}")


def _options(values: dict[str, Any]) -> Options:
    given = {name: v for name, v in _fields(Options, values).items() if v is not None}
    for name in ("shard_size", "shard_records", "squashfs_compression", "squashfs_block"):
        if name in given:
            _check_packs(name, values["output"])
    return Options(
        **given
        | {
            "verify": Verify.NONE if values["skip_verify"] else values["verify"],
            "strip_components": _strip(values["strip_components"]),
            "preserve_times": values["preserve_times"] is True,
        }
    )


def _check_packs(name: str, output: Output) -> None:
    """``UsageError`` if an option of packed outputs is not one of ``output``'s."""
    users = registry.outputs_with(name)
    if output not in users:
        raise UsageError(
            f"--{name.replace('_', '-')} is for --output "
            f"{' and '.join(user.value for user in users)}; omit it with --output {output.value}"
        )


def _strip(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 3:
        raise UsageError("--strip-components takes auto or a number from 0 to 999")
    return int(text)
