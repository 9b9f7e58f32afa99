"""Archive formats and compressions, from the first bytes of a file and the ending of its name.

Sources use it to find archives among their files, readers to find the format of an archive. Magic
numbers: gzip RFC 1952; zstd RFC 8878; lz4's frame format; zip APPNOTE 4.3; tar's header checksum;
the others from the database of file(1).
"""

from __future__ import annotations

import posixpath
import struct
from collections import defaultdict
from dataclasses import dataclass

from jobs.formats.tar_header import BLOCK, is_header
from jobs.model import Format

HEAD = 1024  # bytes that identify an archive

_LZMA_HEADER = 14  # bytes: properties, dictionary size, content size, the coder's first byte
_LZMA_MOST = 1 << 38  # bytes of content, at most, as in liblzma's detection


@dataclass(frozen=True)
class Packing:
    """An archive format, or a compression of one file."""

    name: str  # for messages
    endings: tuple[str, ...]  # of names, in lower case
    magics: tuple[bytes, ...] = ()  # possible first bytes
    unpack: str = ""  # a command that unpacks it, if no reader here does
    compresses: bool = False  # whether it compresses one file, which may be a tar
    tar_endings: tuple[str, ...] = ()  # of a tar with this compression
    format: Format | None = None  # for its reader; of a compression: without a tar inside
    tar_format: Format | None = None  # of a tar with this compression
    holds_files: bool = False  # whether it is an archive of files, which a reader extracts

    @property
    def is_read(self) -> bool:
        """Whether there is a reader for it."""
        return self.format is not None

    @property
    def remedy(self) -> str:
        """A message that it is not supported, and what to do instead."""
        return (
            f"{self.name} is not supported; unpack it with `{self.unpack}` and launch with "
            "--local-path on the folder, or ask for a tar or zip"
        )


def _compress_magics() -> tuple[bytes, ...]:
    """The third byte has the number of bits, 9 to 16, and a flag in its highest bit."""
    return tuple(b"\x1f\x9d%c" % (bits | mode) for bits in range(9, 17) for mode in (0x80, 0))


def _gzip_magics() -> tuple[bytes, ...]:
    """The method, then flags, of which the three highest are reserved and zero."""
    return tuple(b"\x1f\x8b\x08%c" % flags for flags in range(32))


def _bzip2_magics() -> tuple[bytes, ...]:
    """A level, then the mark of the first block, or of the end if there is no block."""
    marks = (b"1AY&SY", b"\x17rE8P\x90")
    return tuple(b"BZh%d%b" % (level, mark) for level in range(1, 10) for mark in marks)


TAR = Packing("tar", (".tar",), format=Format.TAR, holds_files=True)
ZIP = Packing(
    "zip",
    (".zip",),
    (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00PK\x03\x04"),
    format=Format.ZIP,
    holds_files=True,
)
PARQUET = Packing("parquet", (".parquet",), (b"PAR1",), format=Format.PARQUET)


def _compression(
    name: str,
    endings: tuple[str, ...],
    tar_endings: tuple[str, ...],
    magics: tuple[bytes, ...],
    format: Format,
    tar_format: Format,
) -> Packing:
    """A compression with a reader."""
    return Packing(
        name,
        endings,
        magics,
        compresses=True,
        tar_endings=tar_endings,
        format=format,
        tar_format=tar_format,
    )


_TBZ = (".tbz", ".tbz2", ".tb2", ".tz2")
GZIP = _compression("gzip", (".gz",), (".tgz", ".taz"), _gzip_magics(), Format.GZ, Format.TAR_GZ)
ZSTD = _compression(
    "zstd", (".zst", ".zstd"), (".tzst", ".tzs"), (b"\x28\xb5\x2f\xfd",), Format.ZST, Format.TAR_ZST
)
XZ = _compression("xz", (".xz",), (".txz",), (b"\xfd7zXZ\0",), Format.XZ, Format.TAR_XZ)
BZIP2 = _compression("bzip2", (".bz2", ".bz"), _TBZ, _bzip2_magics(), Format.BZ2, Format.TAR_BZ2)
LZ4 = _compression("lz4", (".lz4",), (".tlz4",), (b"\x04\x22\x4d\x18",), Format.LZ4, Format.TAR_LZ4)
LZMA = _compression("lzma", (".lzma",), (".tlz",), (), Format.LZMA, Format.TAR_LZMA)

PACKINGS = (
    TAR,
    ZIP,
    PARQUET,
    GZIP,
    ZSTD,
    XZ,
    BZIP2,
    LZ4,
    LZMA,
    Packing("RAR", (".rar",), (b"Rar!\x1a\x07",), "unrar x"),
    Packing("7z", (".7z",), (b"7z\xbc\xaf\x27\x1c",), "7z x"),
    Packing("compress (.Z)", (".z",), _compress_magics(), "gzip -d", True, (".taz",)),
    Packing("lzip", (".lz",), (b"LZIP\x00", b"LZIP\x01"), "lzip -d", True, (".tlz",)),
    Packing("lzop", (".lzo",), (b"\x89LZO\0\r\n\x1a\n",), "lzop -d", True, (".tzo",)),
    Packing("brotli", (".br",), (), "brotli -d", True, (".tbr",)),
    Packing("snappy", (".sz", ".snappy"), (b"\xff\x06\0\0sNaPpY",), "snzip -d", True),
    Packing("lz4's legacy format", (), (b"\x02\x21\x4c\x18",), "lz4 -d", True),
    Packing("lrzip", (".lrz",), (b"LRZI",), "lrzip -d", True),
    Packing("zpaq", (".zpaq",), (b"7kSt", b"zPQ"), "zpaq x"),
    Packing("cpio", (".cpio",), (b"070701", b"070702", b"070707"), "cpio -id"),
    Packing("ar", (".ar", ".deb"), (b"!<arch>\n",), "ar x"),
    Packing("RPM", (".rpm",), (b"\xed\xab\xee\xdb",), "bsdtar -xf"),
    Packing("xar", (".xar",), (b"xar!",), "bsdtar -xf"),
    Packing("a cabinet file", (".cab",), (b"MSCF\0\0\0\0",), "cabextract"),
    Packing("a WIM image", (".wim",), (b"MSWIM\0\0\0",), "7z x"),
    Packing("squashfs", (".squashfs", ".sqfs", ".sfs"), (b"hsqs", b"sqsh"), "unsquashfs"),
    Packing("a disk image", (".iso", ".dmg"), (), "7z x"),
    Packing("LHA", (".lha", ".lzh"), (), "lha x"),
    Packing("ARJ", (".arj",), (), "arj x"),
    Packing("ACE", (".ace",), (), "unace x"),
    Packing("ALZip", (".alz", ".egg"), (b"ALZ\x01", b"EGGA"), "unar"),
    Packing("a file encrypted with gpg", (".gpg", ".pgp"), (), "gpg -d"),
    Packing("a file encrypted with openssl", (), (b"Salted__",), "openssl enc -d"),
    Packing("a file encrypted with age", (".age",), (b"age-encryption.org/v1",), "age -d"),
    Packing("StuffIt", (".sit", ".sitx"), (b"SIT!", b"StuffIt "), "unar"),
)
_BY_FIRST_BYTE: defaultdict[int, list[tuple[bytes, Packing]]] = defaultdict(list)
for _packing in PACKINGS:
    for _magic in _packing.magics:
        _BY_FIRST_BYTE[_magic[0]].append((_magic, _packing))
_BY_ENDING = {
    ending: packing
    for packing in reversed(PACKINGS)  # of two with the same ending the first one is used
    for ending in (*packing.endings, *packing.tar_endings)
}
ENDINGS = frozenset(_BY_ENDING)  # of archives and compressed files, in lower case
OR_TEXTS = (".ar", ".br", ".gpg", ".pgp", ".age")  # also endings of texts: languages, keys, …
_TAR_ENDINGS = tuple(e for packing in PACKINGS for e in (*packing.tar_endings, ".tar"))

# Endings that decide the format: data, some of which are zips or compressed streams inside.
_DATA = (
    "png jpg jpeg jfif webp gif bmp tif tiff avif heic heif jp2 jxl ico svg svgz ppm pgm "
    "pbm exr hdr psd dng nef cr2 arw txt md rst json jsonl ndjson geojson csv tsv html htm "
    "xhtml xml yaml yml toml ini cfg conf log css js ts py ipynb r sh bib tex srt vtt pdf "
    "ps doc docx xls xlsx ppt pptx odt ods odp epub wav mp3 flac ogg oga opus m4a aac aiff "
    "mid midi mp4 m4v mkv webm avi mov mpg mpeg wmv flv npy npz h5 hdf5 hdf mat pkl pickle "
    "pt pth ckpt safetensors onnx gguf pb tflite keras arrow feather ipc orc avro tfrecord "
    "tfrecords lmdb mdb db sqlite sqlite3 duckdb nc zarr fits nii dcm ply obj stl glb gltf "
    "fbx usd usdz pcd las laz e57 step blend kml kmz shp dbf shx prj gpkg pmtiles mbtiles "
    "rds rda rdata jar war whl apk ipa cbz 3mf ttf otf woff woff2 proto wasm so "
    "mgz bam bcf cram tbi csi mxl mscz musx qza qzv sb2 sb3 slx mlx ggb xmind kra ora osz osk f3d "
    "docm dotx xlsm xlsb pptm vsdx hwpx aab aar xpi vsix nupkg fmu qgz shz pt2 ptl mar nemo skops"
)
_DATA_ENDINGS = frozenset(f".{word}" for word in _DATA.split())
# The same, of formats that programs read compressed: scans, sequences and their annotations, files
# with an index of their own, and arrays.
_COMPRESSED = "nii vcf warc wat wet fa fasta fna faa fq fastq bed gff gff3 gtf"
_PACKED_DATA = (*(f".{word}.gz" for word in _COMPRESSED.split()), ".zarr.zip")
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # endings of files that may be records
# First members of zips that are one document or model: Office Open XML, OpenDocument and EPUB,
# Java, PyTorch.
_DOCUMENTS = (b"[Content_Types].xml", b"_rels/.rels", b"mimetype", b"META-INF/")
_PYTORCH = (b"/data.pkl", b"/.format_version")

_BLANKS = b"\xef\xbb\xbf \t\r\n"  # white space and the byte order mark of UTF-8
LFS_POINTER = b"version https://git-lfs"
ANNEX_POINTER = b"/annex/objects/"  # in a pointer file, and in a link to the content
_OTHER_CONTENT = (
    (LFS_POINTER, "a Git LFS pointer, not the file itself"),
    (ANNEX_POINTER, "a git-annex pointer, not the file itself"),
    (b"<!doctype html", "a web page (of a login or an error?)"),
    (b"<html", "a web page (of a login or an error?)"),
    (b"<?xml", "an XML document (an error of an object store?)"),
    (b"<error", "an XML document (an error of an object store?)"),
    (b'{"', "a JSON document (an error message?)"),
)


def packing_of(head: bytes) -> Packing | None:
    """The packing of a file that begins with ``head``; None if it is not packed.

    ``HEAD`` bytes are enough. A document or model that is a zip inside does not count as packed.
    """
    content = _behind_skippable_frames(head)
    if content is not head and not content.startswith((*ZSTD.magics, *LZ4.magics)):
        return ZSTD if len(content) < 4 else None  # lz4's programs write none at the start
    for magic, packing in _BY_FIRST_BYTE.get(content[0], ()) if content else ():
        if content.startswith(magic):
            return None if packing is ZIP and _is_document(content) else packing
    if is_header(head[:BLOCK]):
        return TAR
    if is_lzma(head):
        return LZMA
    is_lha = head[2:5] in (b"-lh", b"-lz") and head[6:7] == b"-"
    return _BY_ENDING[".lzh"] if is_lha else None


def is_skippable_frame(head: bytes) -> bool:
    """Whether ``head`` begins a frame that zstd and lz4 skip (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _behind_skippable_frames(head: bytes) -> bytes:
    while len(head) >= 8 and is_skippable_frame(head):
        head = head[8 + struct.unpack_from("<I", head, 4)[0] :]
    return head


def _is_document(head: bytes) -> bool:
    """Whether a zip's first member shows that it is a document or model."""
    if len(head) < 30 or not head.startswith(b"PK\x03\x04"):
        return False
    name = head[30 : 30 + struct.unpack_from("<H", head, 26)[0]]
    return name.startswith(_DOCUMENTS) or name.endswith(_PYTORCH)


def is_lzma(head: bytes) -> bool:
    """Whether ``head`` begins an .lzma file, which has no magic number.

    The same tests as in liblzma (``lzma_alone_decoder`` with ``picky``), and that the range
    coder's first byte is zero, as it always is.
    """
    if len(head) < _LZMA_HEADER or head[0] >= 9 * 5 * 5 or head[13]:
        return False
    dictionary, size = struct.unpack_from("<IQ", head, 1)
    lc, lp = head[0] % 9, head[0] // 9 % 5
    bits = dictionary.bit_count()  # 2^n, 2^n + 2^(n-1), or all bits
    usual = bits == 1 or (bits == 2 and dictionary & dictionary >> 1) or bits == 32
    unknown = size == (1 << 64) - 1
    return lc + lp <= 4 and dictionary >= 4096 and bool(usual) and (unknown or size < _LZMA_MOST)


def packing_named(name: str) -> Packing | None:
    """The packing of a file with that name, by its ending."""
    return _BY_ENDING.get(last_ending(name).lower())


def is_never_packed(name: str) -> bool:
    """Whether a name has the ending of a data format, and none of an archive or a compression."""
    return last_ending(name).lower() in _DATA_ENDINGS


def is_data_name(name: str) -> bool:
    """Whether a name has the ending of a well-known data format."""
    ending = last_ending(name).lower()
    return ending in _DATA_ENDINGS or (
        ending in (".gz", ".zip") and name.lower().endswith(_PACKED_DATA)
    )


def is_tar_name(name: str) -> bool:
    """Whether a name is that of a tar, compressed or not, or of a piece of one."""
    last = posixpath.basename(name).lower()
    return ".tar." in last or last.endswith(_TAR_ENDINGS)


def is_container(name: str, packing: Packing | None) -> bool:
    """Whether it is an archive of files, compressed or not."""
    return packing is not None and (packing.holds_files or is_tar_name(name))


def ending(name: str) -> str:
    """The archive ending of ``name`` (``.tar.gz``, ``.zip``); empty for others."""
    packing = packing_named(name)
    if packing is None:
        return ""
    last = last_ending(name)
    inner = last_ending(name[: -len(last)]) if packing.compresses else ""
    return inner + last if inner.lower() == ".tar" else last


def last_ending(name: str) -> str:
    """As ``posixpath.splitext``, but five times faster: there may be 100,000 names."""
    dot = name.rfind(".")
    return name[dot:] if dot > name.rfind("/") + 1 else ""


def decompressed_name(name: str) -> str:
    """``name`` without the ending of the compression."""
    packing = packing_named(name)
    if packing is None or not packing.compresses or is_tar_name(name):
        return name
    return name[: -len(last_ending(name))]


def stays_compressed(name: str) -> bool:
    """Whether a compressed file is published as it is: its name does not say that it is one.

    Programs that read such a file (``a.jgz``, ``train-00000-of-00010`` of TFRecords) expect the
    compressed bytes.
    """
    return decompressed_name(name) == name


def is_page(head: bytes, *, labelled: bool = False) -> bool:
    """Whether a body begins like a web page; ``labelled``: its headers say that it is one."""
    text = head.lstrip(_BLANKS).lower()
    return text.startswith((b"<!doctype html", b"<html")) or (labelled and text.startswith(b"<"))


def is_page_name(name: str) -> bool:
    """Whether a file with that name is a web page."""
    return name.lower().endswith((".html", ".htm", ".xhtml", ".mhtml"))


def other_content(head: bytes) -> str | None:
    """What was received instead of a file, by its first bytes; None if they may be the file's."""
    text = head[:BLOCK].lstrip(_BLANKS).lower()
    return next((what for start, what in _OTHER_CONTENT if text.startswith(start)), None)
