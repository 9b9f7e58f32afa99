"""Fixtures for everybody: a real Slurm, with accounting and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.slurm import PrivateSlurm, available


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    """A private Slurm with accounting; merge `.env` where a client of it is to run."""
    yield from _slurm(accounting=True)


@pytest.fixture(scope="session")
def slurm_plain() -> Iterator[PrivateSlurm]:
    """A private Slurm without accounting: `sacct` is disabled there."""
    yield from _slurm(accounting=False)


def _slurm(*, accounting: bool) -> Iterator[PrivateSlurm]:
    reason = available(accounting=accounting)
    if reason:
        pytest.skip(reason)
    with PrivateSlurm.start(accounting=accounting) as running:
        yield running
