from collections.abc import Sequence

from jobs.storage.folder_files import Status, Wanted

SOURCE_CRC32: int  # of the C file that it was compiled from

def stat_files(folder: bytes, names: Sequence[bytes]) -> list[Status | None]: ...
def read_files(folder: bytes, files: Sequence[Wanted]) -> tuple[bytes, list[bool]]: ...
