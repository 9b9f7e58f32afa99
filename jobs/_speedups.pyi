from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

def scan_tar(block: Buffer, start: int) -> list[tuple[bytes, int, int, int, float]]: ...
def write_small(
    files: Sequence[tuple[bytes, int, memoryview, int | None, int | None]],
) -> tuple[list[int], float]: ...
