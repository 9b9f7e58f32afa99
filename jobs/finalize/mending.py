"""Mends a dataset that this run has published: what is put back is proven to be the same."""

from __future__ import annotations

from pathlib import Path

import msgspec

from jobs.errors import Cause, VerificationError
from jobs.finalize.ground import Ground, Json, Mending
from jobs.finalize.merge import Merged, Proof
from jobs.model import utc_now
from jobs.storage import atomic
from jobs.storage.manifest import Published
from jobs.storage.staging import MANIFEST, RECEIPT, Repair


class _Head(msgspec.Struct):
    run_id: str


def begun(ground: Ground) -> Mending | None:
    """The repair that is under way: published once, and the receipt withdrawn or lost.

    Raises ``VerificationError`` where another run's dataset has taken the place.
    """
    try:
        receipt: Json = msgspec.json.decode(ground.folder.receipt.read_bytes())
    except FileNotFoundError:
        return None  # never published
    try:
        owner = atomic.read_json(ground.staging.receipt, _Head).run_id
    except FileNotFoundError:
        pass
    except msgspec.DecodeError:
        ground.staging.receipt.unlink()  # damaged; its copy is whole
    else:
        raise VerificationError(
            f"{ground.staging.dest} holds the dataset of run {owner} by now, which replaced this "
            "run's; launch again to publish this one",
            cause=Cause.CLAIMED,
        )
    return Mending(receipt, _records_needed(ground, receipt))


def _records_needed(ground: Ground, receipt: Json) -> bool:
    """Whether the records file is to be merged anew, as a check found or its size shows."""
    published = receipt["records"]
    if published is None:
        return False
    try:
        if atomic.read_json(ground.staging.repair, Repair).records:
            return True
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # the receipt was lost without a check
    path = Path(ground.staging.dest, published["path"])
    return not path.is_file() or path.stat().st_size != int(published["size"])


def records_as_published(mending: Mending) -> Merged | None:
    """The records file, which stays as it is."""
    line = mending.receipt["records"]
    if line is None:
        return None
    return Merged(msgspec.convert(line, Published), mending.receipt["counts"]["records"], 0, {})


def receipt_of(ground: Ground, mending: Mending, proof: Proof) -> Json:
    """The receipt again, with a note of the repair.

    Raises ``VerificationError`` where the parts that were extracted again are not what they were:
    the manifest that is built of all parts must be the published one, to the byte.
    """
    if proof.sha256 != mending.receipt["manifest"]["sha256"]:
        raise VerificationError(
            f"the repair gives other files than {MANIFEST} had them: the source has changed, or "
            f"the run folder has; nothing was replaced; launch again with --overwrite "
            f"(what {RECEIPT} told is in {ground.folder.receipt})"
        )
    repairs = [*mending.receipt.get("repairs", ()), {"ended": utc_now()}]
    return {**mending.receipt, "repairs": repairs}
