"""Slurm's commands are ended in time, whatever a site has put in their place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.engines.slurm import client
from orchestrator.engines.slurm.client import TimedOut


def test_a_wrapper_of_sbatch_that_does_not_respond_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SBATCH_TIMEOUT_S", 0.5)
    wrapper = tmp_path / "sbatch"
    busy = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying."
    wrapper.write_text(f"#!/bin/sh\necho '{busy}' >&2\nsleep 20\nexit 0\n")
    wrapper.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"did not respond .*\(Slurm temporarily unable"):
        client.submit([str(wrapper)])
    assert time.monotonic() - began < 15
