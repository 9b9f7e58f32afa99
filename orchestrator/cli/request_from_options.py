"""Makes a launch request of the command line's options."""

from __future__ import annotations

import posixpath
import sys
from dataclasses import dataclass
from typing import Any

import click

from jobs.errors import UsageError
from jobs.model import (
    Layout,
    Links,
    Match,
    OnBadRecord,
    OnCollision,
    Options,
    Output,
    Resources,
    SourceKind,
    Verify,
)
from jobs.outputs import registry
from jobs.sources.base import SourceRequest
from jobs.sources.object_urls import is_object_url
from orchestrator.api import LaunchRequest
from orchestrator.cli import options


@dataclass(frozen=True)
class OutputMode:
    """The output of a launch, and whether it waits for the run."""

    dry_run: bool
    wait: bool
    yes: bool
    as_json: bool
    parsable: bool

    def __post_init__(self) -> None:
        if self.as_json and self.parsable:
            raise UsageError("--json and --parsable cannot be combined; choose one")

    @classmethod
    def take(cls, values: dict[str, Any]) -> OutputMode:
        """Remove these options from a command's ``values``."""
        return cls(**{name: values.pop(name) for name in cls.__dataclass_fields__})

    @property
    def quiet(self) -> bool:
        return self.as_json or self.parsable

    @property
    def hands_out_id(self) -> bool:
        """Whether a script gets the id of a job, and waits for its success.

        An automatic retry would succeed with a different id.
        """
        return self.parsable and not self.wait

    @property
    def asks(self) -> bool:
        """Whether to ask the user."""
        return not (self.yes or self.quiet) and sys.stdin.isatty() and sys.stderr.isatty()


def request(values: dict[str, Any]) -> LaunchRequest:
    """The request of the options of ``launch``; ``UsageError`` if they are inconsistent."""
    header_env = tuple(_header(text) for text in values["headers"])
    layout = _layout(values)
    resources = options.with_mounts(
        options.slurm_changes(values),
        values["dest"],
        values["temp_dir"],
        values["log_dir"],
        values["local_path"],
    )
    return LaunchRequest(
        source=_source(values, header_env, layout),
        dest=values["dest"],
        temp_dir=values["temp_dir"],
        log_dir=values["log_dir"],
        options=_options(values, header_env, layout),
        engine=values["engine"],
        tasks=values["tasks"],
        parallel=values["parallel"],
        resources=Resources(**resources),
        download_partition=values["download_partition"],
        download_sbatch_args=values["download_sbatch_args"],
        temp_limit=values["temp_limit"],
        download_tasks=values["download_tasks"],
        download_on=values["download_on"],
        retries=values["retries"],
        then=values["then"],
    )


def _layout(values: dict[str, Any]) -> Layout:
    """The layout of the options; with ``--records-file`` only that file is used."""
    name, records = values["layout"], values["records_file"]
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


def _source(
    values: dict[str, Any], header_env: tuple[tuple[str, str], ...], layout: Layout
) -> SourceRequest:
    kind, locators = _locators(values)
    for option, kinds in _BELONGS.items():
        if values[option] and kind not in kinds:
            raise UsageError(
                f"--{_SPELLED.get(option, option.replace('_', '-'))} cannot be combined with "
                f"--{_FLAG[kind]}"
            )
    return SourceRequest(
        kind=kind,
        locators=locators,
        files=values["hf_files"],
        include=values["include"],
        exclude=values["exclude_files"],
        revision=values["revision"],
        repo_type=values["repo_type"],
        sha256=values["sha256"],
        header_env=header_env,
        layout=layout,
        folder_times=values["preserve_times"] is not False,
        join=values["join"],
        nested=values["nested"],
    )


_FLAG = {
    SourceKind.HUB: "hf-repo",
    SourceKind.URL: "url",
    SourceKind.STORE: "url of an object store",
    SourceKind.DOI: "doi",
    SourceKind.LOCAL: "local-path",
}
_BELONGS = {
    "hf_files": (SourceKind.HUB,),
    "revision": (SourceKind.HUB, SourceKind.DOI),
    "sha256": (SourceKind.URL, SourceKind.STORE),
    "headers": (SourceKind.URL, SourceKind.DOI),
}
_SPELLED = {"hf_files": "hf-file", "headers": "header"}


def _locators(values: dict[str, Any]) -> tuple[SourceKind, tuple[str, ...]]:
    """The source of the options."""
    urls = list(values["urls"])
    if values["url_list"]:
        from jobs.sources.registry import parse_url_list

        try:
            with click.open_file(values["url_list"], encoding="utf-8") as file:
                urls += parse_url_list(file.read())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--url-list {values['url_list']} cannot be read as UTF-8 text ({error})"
            ) from error
    sources: list[tuple[SourceKind, tuple[str, ...]]] = []
    if values["hf_repo"]:
        sources.append((SourceKind.HUB, (values["hf_repo"],)))
    if urls:
        # A line of a list may begin with a name.
        stored = any(is_object_url(url.split("\t")[-1]) for url in urls)
        sources.append((SourceKind.STORE if stored else SourceKind.URL, tuple(urls)))
    if values["doi"]:
        sources.append((SourceKind.DOI, (values["doi"],)))
    if values["local_path"]:
        sources.append((SourceKind.LOCAL, (str(values["local_path"].absolute()),)))
    if len(sources) != 1:
        raise UsageError(
            "launch needs exactly one source: --hf-repo REPO, --url URL (or --url-list FILE), "
            f"--doi DOI, or --local-path PATH; {'none' if not sources else 'more than one'} was "
            "given"
        )
    return sources[0]


def _packing(values: dict[str, Any], output: Output) -> dict[str, Any]:
    """The fields of ``Options`` for packed outputs that were given."""
    given = {}
    for name in ("shard_size", "shard_records", "squashfs_compression", "squashfs_block"):
        if values[name] is not None:
            given[name] = values[name]
            users = registry.outputs_with(name)
            if output not in users:
                raise UsageError(
                    f"--{name.replace('_', '-')} is for --output "
                    f"{' and '.join(user.value for user in users)}; omit it with --output "
                    f"{output.value}"
                )
    return given


def _options(
    values: dict[str, Any], header_env: tuple[tuple[str, str], ...], layout: Layout
) -> Options:
    output = Output(values["output"])
    return Options(
        layout=layout,
        output=output,
        **_packing(values, output),
        verify=Verify.NONE if values["skip_verify"] else Verify(values["verify"]),
        digest=values["digest"],
        on_bad_record=OnBadRecord(values["on_bad_record"]),
        on_collision=OnCollision(values["on_collision"]),
        match=Match(values["match"]),
        links=Links(values["links"]),
        strip_components=_strip(values["strip_components"]),
        nested=values["nested"],
        records_encoding=values["records_encoding"],
        zip_encoding=values["zip_encoding"],
        max_expansion=values["max_expansion"],
        max_members=values["max_members"],
        keep_archive=values["keep_archive"],
        overwrite=values["overwrite"],
        preserve_times=values["preserve_times"] is True,
        folder_times=values["preserve_times"] is not False,
        expect_records=values["expect_records"],
        part_size=values["part_size"],
        overlap=values["overlap"],
        connections=values["connections"],
        max_rate=values["max_rate"],
        stall_s=values["stall"],
        header_env=header_env,
    )


def _strip(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError("--strip-components takes auto or a number")
    return int(text)
