from jobs.archives.zip.ordinary import Buffer, OrdinaryFile, Records

SOURCE_CRC32: int  # of the C file that it was compiled from

def scan_records(block: Buffer, start: int, place: int) -> Records: ...
def find_files(
    directory: Buffer, start: int, block: Buffer, place: int, offsets: Buffer, most: int
) -> list[OrdinaryFile]: ...
