"""What is missing before there is anything to audit, and why."""

from __future__ import annotations

from jobs.errors import Cause
from jobs.model import Plan, Problem, Summary
from jobs.storage.run_folder import RunFolder

_SHOWN = 5  # shards that a line names


def unfinished(folder: RunFolder, plan: Plan) -> tuple[Summary, Problem] | None:
    """The summary and the problem where parts are not extracted; None where all are."""
    finished = folder.finished_ids()
    parts = [part for part in plan.parts() if part.id not in finished]
    if not parts:
        return None
    fetched = folder.fetched_ids()
    of_shards = dict.fromkeys(part.shard for part in parts)
    not_here = [shard for shard in of_shards if shard not in fetched]
    why = _reasons(folder)
    names = {shard.id: shard.name for shard in plan.shards}
    lines = [
        f"✗ {names[shard]}: {_state(shard in fetched)}"
        + (f": {why[shard]}" if shard in why else "")
        for shard in list(of_shards)[:_SHOWN]
    ]
    if len(of_shards) > _SHOWN:
        lines.append(f"✗ … and {len(of_shards) - _SHOWN} more shards")
    mends = folder.receipt.exists()
    aim = "mended" if mends else "published"
    total = len(plan.parts())
    facts = [f"{len(parts)} of {total} parts are not extracted"]
    if not_here:
        facts.append(f"{len(not_here)} of {len(plan.shards)} shards are not here")
    message = (
        f"{' and '.join(facts)} ({', '.join(names[shard] for shard in list(of_shards)[:_SHOWN])}"
        f"{', …' if len(of_shards) > _SHOWN else ''}); nothing was {aim} and nothing is lost; "
        "resume goes on from here"
    )
    if mends:
        message += (
            "; until then the dataset is as damaged as it was, and its receipt withdrawn (what it "
            f"told is in {folder.receipt})"
        )
    done = f"✗ {total - len(parts)} of {total} parts extracted: nothing was {aim}"
    return Summary(lines=(*lines, done)), Problem(Cause.NOT_FETCHED, message)


def _state(here: bool) -> str:
    return "not extracted" if here else "not fetched"


def _reasons(folder: RunFolder) -> dict[str, str]:
    """By shard, what its latest result says."""
    latest: dict[str, tuple[int, str]] = {}
    for result in folder.load_results():
        for item in result.items:
            if item.problem is None or item.problem.cause is Cause.NOT_FETCHED:
                continue
            shard = item.problem.shard or item.item.rpartition(".p")[0] or item.item
            if latest.get(shard, (-1, ""))[0] < result.attempt:
                latest[shard] = (result.attempt, item.problem.message)
    return {shard: message for shard, (_, message) in latest.items()}
