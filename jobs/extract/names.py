"""From a member's name in its archive to its path below the data folder."""

from __future__ import annotations

from jobs.model import OnCollision, Plan, Shard, ShardKind, placed_path
from jobs.storage.safe_paths import is_folder_itself, junk_kind, safe_path

ABOVE = "above --strip-components"  # a kind of what is left out


class Names:
    """Maps names of one shard; counts what is left out, by kind, in ``left_out``."""

    def __init__(self, plan: Plan, shard: Shard, *, top: str | None) -> None:
        self._plan = plan
        self._shard = shard
        self._strip = plan.options.strip_components or 0
        if top is not None:
            self._strip = 0
        if shard.kind is not ShardKind.ARCHIVE:
            self._strip = 0
        self._top = b"" if top is None else top.encode("utf-8", "surrogateescape") + b"/"
        self._per_shard = plan.options.on_collision is OnCollision.PER_SHARD
        layout = plan.options.layout
        self._records = layout.records.encode() if layout.has_records else None
        self._images = f"{layout.images}/".encode()
        self.left_out: dict[str, int] = {}

    def inner(self, name: bytes, *, folder: bool = False) -> bytes | None:
        """The path within the dataset as the shard has it: safe, stripped, junk left out.

        None where nothing is to be written. Raises ``UnsafeMemberError``.
        """
        if folder and name.startswith(b".") and is_folder_itself(name):
            return None
        kind = junk_kind(name)  # which is not written, so that no name of it can do harm
        path = name if kind else safe_path(name, archive=self._shard.name)
        if path != name:
            kind = junk_kind(path)
        if kind is None and self._top:
            if path.startswith(self._top):
                path = path[len(self._top) :]
                kind = junk_kind(path)
            elif path + b"/" == self._top:
                return None
        elif kind is None and self._strip:
            parts = path.split(b"/", self._strip)
            if len(parts) <= self._strip:
                kind = ABOVE
            else:
                path = parts[-1]
                kind = junk_kind(path)
        if kind is not None:
            self.left_out[kind] = self.left_out.get(kind, 0) + 1
            return None
        return path

    def below(self, folder: bytes, path: bytes) -> bytes:
        """A path from ``inner`` of an archive that lies in ``folder`` (empty, or with a slash).

        Within the images folder, an archive that holds the images folder itself means the same,
        and its records are the dataset's.
        """
        own = path == self._records or path.startswith(self._images)
        return path if own and folder.startswith(self._images) else folder + path

    def peek(self, path: bytes) -> bytes | None:
        """As ``inner``, for a path that is looked up only: nothing is counted."""
        counted, self.left_out = self.left_out, {}
        try:
            return self.inner(path)
        finally:
            self.left_out = counted

    @property
    def is_per_shard(self) -> bool:
        """Whether each archive, a nested one too, has a folder of its own."""
        return self._per_shard

    @property
    def keeps_places(self) -> bool:
        """Whether every file lies to every other one as it does in the shard."""
        return not (self._per_shard or self._strip or self._top)

    def is_records(self, path: bytes) -> bool:
        """Whether a path from ``inner`` is the shard's records file."""
        return path == self._records

    def placed(self, path: bytes) -> bytes:
        """Where a path from ``inner`` goes below the data folder."""
        if not self._per_shard:
            return path
        text = path.decode("utf-8", "surrogateescape")
        return placed_path(self._plan, self._shard, text).encode("utf-8", "surrogateescape")
