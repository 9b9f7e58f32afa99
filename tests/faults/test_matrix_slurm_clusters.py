"""Several clusters and one disk, and a cluster that renames jobs; all on real Slurms.

Row 15 of the fault matrix (docs/faults.md) and those beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.model import Stage
from tests.support.cli import Cli
from tests.support.cluster.sites import LAUNCH, Pages, Site, gate, published
from tests.support.cluster.slurm import PrivateSlurm, skip_unless_available

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

ALONE = ("--retries", "0")  # the run does nothing by itself


def of(slurm: PrivateSlurm) -> str:
    """How a cluster is named to its users."""
    return f"{slurm.layout.cluster} (controller "


def ids(slurm: PrivateSlurm) -> set[str]:
    """The jobs that wait or run; a cancelled one is completing for a moment."""
    return {row.job_id for row in slurm.squeue() if row.state != "COMPLETING"}


# One disk, two Slurms that know nothing of each other -------------------------------------------


@pytest.fixture(scope="module", params=["other", "websight"])
def stranger(request: pytest.FixtureRequest) -> Iterator[PrivateSlurm]:
    """Another site's Slurm: of another name, and of the same name as all others here."""
    skip_unless_available(accounting=False)
    with PrivateSlurm.start(accounting=False, nodes=2, cluster=request.param) as running:
        yield running


@pytest.fixture
def elsewhere(plain: Site, stranger: PrivateSlurm) -> Site:
    """The same shell and disk, with the stranger's Slurm."""
    return Site(stranger, plain.cli.having(**stranger.env))


def test_where_another_cluster_answers_both_are_named_and_nothing_is_done(
    plain: Site, elsewhere: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    plain.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    before = ids(plain.slurm)
    state = elsewhere.status()
    assert state["state"] == "running" and state["errors"] == []
    for said in (
        state["engine_silent"],
        elsewhere.resume(rc=4).err,
        elsewhere.cli.run("cancel", rc=4).err,
    ):
        assert f"on cluster {of(plain.slurm)}" in said
        assert f"uses cluster {of(elsewhere.slurm)}" in said
        assert "login node" in said
    assert ids(elsewhere.slurm) == set() and ids(plain.slurm) == before
    assert plain.status()["state"] == "running" and plain.status()["remark"] is None
    held.unlink()
    plain.check_published(tmp_path / "data", pages)


def test_a_run_that_was_cancelled_where_it_ran_continues_on_another_cluster(
    plain: Site, elsewhere: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    plain.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    plain.cli.run("cancel")
    assert ids(plain.slurm) == set()
    held.unlink()
    assert elsewhere.status()["state"] == "cancelled"
    held.touch()
    said = elsewhere.resume().err
    assert f"to cluster {of(elsewhere.slurm)}" in said and of(plain.slurm) in said
    for site, silent in ((plain, True), (elsewhere, False)):  # both have jobs of such ids
        state = site.status()
        assert (state["state"], bool(state["engine_silent"])) == ("running", silent)
        assert sum(state["stages"]["extract"][each] for each in ("pending", "unknown")) == 2
    held.unlink()
    elsewhere.check_published(tmp_path / "data", pages)
    assert plain.status()["state"] == "done"


def test_jobs_of_a_cluster_that_is_gone_can_be_abandoned(
    cli: Cli, elsewhere: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    with PrivateSlurm.start(accounting=False, nodes=1, cluster="old") as slurm:
        old = Site(slurm, cli.having(**slurm.env))
        old.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    assert "cancel" in elsewhere.resume(rc=4).err
    assert "--abandon" in elsewhere.cli.run("cancel", rc=4).err
    done = elsewhere.cli.run("cancel", "--abandon")
    assert "abandoned" in done.err and "on cluster old" in done.err
    held.unlink()
    elsewhere.resume()
    elsewhere.check_published(tmp_path / "data", pages)


# Two clusters of one accounting -----------------------------------------------------------------


@pytest.fixture(scope="module")
def sibling(slurm: PrivateSlurm) -> Iterator[PrivateSlurm]:
    """A cluster that the one with accounting reaches with ``-M``."""
    with PrivateSlurm.start(cluster="sibling", nodes=2, sibling=slurm) as running:
        yield running


@pytest.fixture
def chosen(accounted: Site, sibling: PrivateSlurm) -> Iterator[Site]:
    """The sibling, chosen by SLURM_CLUSTERS in the shell of the other cluster."""
    yield Site(sibling, accounted.cli.having(SLURM_CLUSTERS="sibling"))
    if left := ids(sibling):
        sibling.run("scancel", *left)
        sibling.wait_until_idle()


def test_a_run_is_found_on_its_cluster_once_slurm_clusters_is_unset(
    accounted: Site, chosen: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    chosen.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    before = ids(chosen.slurm)
    assert len(before) == 1 + 2 + 1
    state = accounted.status()
    assert (state["state"], state["cluster"], state["engine_silent"]) == (
        "running",
        "sibling",
        None,
    )
    assert state["stages"]["extract"]["pending"] == 2
    assert "still active" in accounted.resume().err
    assert ids(accounted.slurm) == set() and ids(chosen.slurm) == before
    accounted.cli.run("cancel")
    assert ids(chosen.slurm) == set()
    held.unlink()
    accounted.resume()
    accounted.wait(lambda: accounted.status()["state"] == "done")
    assert len(accounted.status()["jobs"]) == 6
    assert ids(accounted.slurm) == set()
    assert published(tmp_path / "data") == pages.tree


def test_what_waits_for_live_jobs_is_not_submitted_to_another_cluster(
    accounted: Site, chosen: Site, pages: Pages, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    slow = gate(held, [Stage.EXTRACT, Stage.FINALIZE])
    chosen.launch(tmp_path / "data", *pages.options, *ALONE, *slow)
    [row, *_] = chosen.wait_running(Stage.EXTRACT, 2)
    chosen.slurm.run("scancel", row.job_id, check=True)
    chosen.wait(lambda: row.job_id not in ids(chosen.slurm))
    other = accounted.slurm.layout.cluster
    said = accounted.cli.having(SLURM_CLUSTERS=other).run("resume", rc=4).err
    assert "in the queue of cluster sibling" in said and f"submits to cluster {other}" in said
    assert ids(accounted.slurm) == set()
    accounted.resume()  # to the cluster that has the others
    assert ids(accounted.slurm) == set()
    held.unlink()
    chosen.wait(lambda: not chosen.jobs(), 90)
    assert accounted.status()["state"] == "done"
    assert published(tmp_path / "data") == pages.tree


def test_where_sbatch_chooses_the_cluster_the_chain_stays_there(
    accounted: Site, chosen: Site, pages: Pages, tmp_path: Path
) -> None:
    here = accounted.slurm.layout.cluster
    both = accounted.cli.having(SLURM_CLUSTERS=f"sibling,{here}")
    held = tmp_path / "held"
    words = ("--dest", tmp_path / "data", *pages.options, *ALONE, *gate(held))
    both.run(*LAUNCH, *words)
    counts = {len(ids(accounted.slurm)), len(ids(chosen.slurm))}
    assert counts == {0, 1 + 2 + 1}
    for shell in (both, accounted.cli, chosen.cli):
        assert shell.status()["state"] == "running"
    held.unlink()
    accounted.wait(lambda: accounted.status()["state"] == "done")
    assert published(tmp_path / "data") == pages.tree


# A federation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(slurm: PrivateSlurm) -> Iterator[tuple[PrivateSlurm, PrivateSlurm]]:
    """Two clusters, each of which starts the other's jobs if it can do that earlier."""
    with (
        PrivateSlurm.start(cluster="east", nodes=1, sibling=slurm) as east,
        PrivateSlurm.start(cluster="west", nodes=2, sibling=slurm) as west,
    ):
        east.run("sacctmgr", "-i", "add", "federation", "both", "clusters=east,west", check=True)
        east.wait_for(lambda: "Sync" in east.run("scontrol", "show", "federation").stdout)
        yield east, west
        east.run("sacctmgr", "-i", "delete", "federation", "both", check=True)


def test_a_job_that_another_cluster_of_the_federation_has_started_runs_and_can_be_cancelled(
    federation: tuple[PrivateSlurm, PrivateSlurm], cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    east, west = federation
    site, held = Site(east, cli.having(**east.env)), tmp_path / "held"
    east.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test", check=True)
    site.launch(tmp_path / "data", *pages.options, *ALONE, *gate(held))
    site.wait(lambda: [row.state for row in west.squeue()] == ["RUNNING"])
    site.wait(lambda: site.status()["stages"]["download"]["running"] == 1)  # accounting is late
    assert site.status()["errors"] == []
    assert "still active" in site.resume().err
    site.cli.run("cancel")
    assert [row.state for row in west.squeue() if row.state != "COMPLETING"] == []
    held.unlink()
    site.resume()
    site.wait(lambda: site.status()["stages"]["download"]["done"] == 1)
    east.run("scontrol", "update", "nodename=n1", "state=resume", check=True)
    site.check_published(tmp_path / "data", pages)


# A cluster that renames jobs --------------------------------------------------------------------

RENAMES = """\
function slurm_job_submit(job, partitions, uid)
  job.name = "lab_job"
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end
return slurm.SUCCESS
"""


@pytest.fixture(scope="module")
def renaming_slurm() -> Iterator[PrivateSlurm]:
    """A Slurm whose plugin gives all jobs one name."""
    skip_unless_available(accounting=False)
    folder = Path(tempfile.mkdtemp(prefix="wsl-"))
    (folder / "job_submit.lua").write_text(RENAMES)
    conf = "JobSubmitPlugins=lua"
    with PrivateSlurm.start(folder, accounting=False, nodes=2, extra_conf=conf) as running:
        yield running


@pytest.fixture
def renaming(renaming_slurm: PrivateSlurm, cli: Cli) -> Iterator[Site]:
    yield Site(renaming_slurm, cli.having(**renaming_slurm.env))
    if left := ids(renaming_slurm):
        renaming_slurm.run("scancel", *left)
        renaming_slurm.wait_until_idle()


def test_jobs_that_the_site_renames_are_followed_and_cancelled_and_no_other(
    renaming: Site, pages: Pages, tmp_path: Path
) -> None:
    script = tmp_path / "then.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/followed\n")
    held = tmp_path / "held"
    # They wait for ever for a file, so that no name of a job matters.
    setup = ("--setup", f"while [ -e {held} ]; do sleep 0.1; done")
    held.touch()
    mine = renaming.slurm.sbatch("sleep 300", cwd=tmp_path)
    renaming.launch(tmp_path / "data", *pages.options, *ALONE, *setup, "--then", script)
    assert {row.name for row in renaming.slurm.squeue()} == {"lab_job"}
    renaming.wait(lambda: renaming.status()["stages"]["download"]["running"] == 1)
    assert renaming.status()["stages"]["extract"]["pending"] == 2
    assert "still active" in renaming.resume().err
    renaming.cli.run("cancel")
    assert ids(renaming.slurm) == {mine}
    held.unlink()
    renaming.resume()
    renaming.wait(lambda: renaming.status()["state"] == "done")
    renaming.wait((tmp_path / "followed").exists)
    renaming.wait(lambda: ids(renaming.slurm) == {mine})
    assert published(tmp_path / "data") == pages.tree


def test_renamed_jobs_are_found_when_the_reply_of_sbatch_was_lost(
    renaming: Site, pages: Pages, tmp_path: Path
) -> None:
    lost = '$REAL "$@" > /dev/null\necho "Socket timed out on send/recv operation" >&2\nexit 1'
    site = renaming.wrapping("sbatch", lost)
    site.launch(tmp_path / "data", *pages.options, *ALONE)
    assert len(site.calls("sbatch")) == 3
    site.wait(lambda: site.status()["state"] == "done")
    assert published(tmp_path / "data") == pages.tree
