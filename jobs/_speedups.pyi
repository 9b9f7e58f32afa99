from collections.abc import Sequence

SOURCE_CRC32: int  # of the C file that it was compiled from
Buffer = bytes | bytearray | memoryview

def scan_tar(block: Buffer, start: int) -> list[tuple[bytes, int, int, int, int, float]]: ...
def write_small(
    files: Sequence[tuple[bytes, int, memoryview, int | None, int | None]],
) -> tuple[list[int], float]: ...
