"""The data model of a run: immutable values that are stored as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from enum import Enum
from functools import cached_property

from msgspec import Struct, field

from jobs.errors import RETRYABLE, Cause, OrchestrateError

SCHEMA = 1  # of every file in a run folder; a reader refuses a higher one
LOCAL_ENGINE = "local"  # the name of the engine that runs tasks on this machine


def utc_now() -> datetime:
    """The current time in UTC, with its zone, so that JSON has ISO 8601 with a Z."""
    return datetime.now(timezone.utc)


class Stage(str, Enum):
    """The steps of a run, in order."""

    DOWNLOAD = "download"
    EXTRACT = "extract"
    PACK = "pack"  # only for large packed datasets on Slurm; finalize packs what is left
    FINALIZE = "finalize"


class Outcome(str, Enum):
    """How an item or a task ended."""

    OK = "ok"
    RETRYABLE = "retryable"
    FAILED = "failed"


class SourceKind(str, Enum):
    """Where shards come from."""

    HUB = "hub"
    URL = "url"
    DOI = "doi"
    STORE = "store"  # an object store
    LOCAL = "local"


class ShardKind(str, Enum):
    """What a shard is, which decides how it is extracted."""

    ARCHIVE = "archive"
    FILE = "file"  # a single file of the dataset, copied as it is
    TREE = "tree"  # a local folder that is a dataset already


class Format(str, Enum):
    """The format of an archive, from its bytes."""

    TAR = "tar"
    TAR_GZ = "tar.gz"
    TAR_ZST = "tar.zst"
    TAR_XZ = "tar.xz"
    TAR_BZ2 = "tar.bz2"
    TAR_LZ4 = "tar.lz4"
    TAR_LZMA = "tar.lzma"
    ZIP = "zip"
    GZ = "gz"  # this and the next five: one compressed file
    ZST = "zst"
    XZ = "xz"
    BZ2 = "bz2"
    LZ4 = "lz4"
    LZMA = "lzma"
    PARQUET = "parquet"
    FILE = "file"
    TREE = "tree"


class Verify(str, Enum):
    """How deeply members are checked while they are written."""

    STRUCTURE = "structure"
    DECODE = "decode"
    NONE = "none"


class OnBadRecord(str, Enum):
    """What to do with records whose image is missing or broken."""

    ERROR = "error"
    DROP = "drop"
    KEEP = "keep"


class OnCollision(str, Enum):
    """What to do if two archives contain different files with the same path."""

    ERROR = "error"
    KEEP_FIRST = "keep-first"
    PER_SHARD = "per-shard"


class Match(str, Enum):
    """How closely a record's path has to match the name of a file."""

    EXACT = "exact"
    AUTO = "auto"  # another spelling or top folder is accepted if only one file matches
    ANY_FOLDER = "any-folder"  # as auto, and any other folder


class Output(str, Enum):
    """What a dataset is published as."""

    FILES = "files"
    WEBDATASET = "webdataset"  # tars with the files of a record next to each other
    ZIP = "zip"  # zips with all files, uncompressed
    SQUASHFS = "squashfs"  # one image with all files and the records, to be mounted


class Links(str, Enum):
    """What to do with symbolic links in an archive."""

    REFUSE = "refuse"
    COPY = "copy"  # a link within the archive becomes a copy of its target


class Digest(Struct, frozen=True):
    """A hash with its algorithm's name (see ``jobs.storage.digest``)."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Problem(Struct, frozen=True):
    """One thing that went wrong, for the user: contains no secret and no traceback."""

    cause: Cause
    message: str
    shard: str | None = None
    member: str | None = None

    @classmethod
    def of(cls, error: OrchestrateError, *, shard: str | None = None) -> Problem:
        """``error`` as a problem; ``shard`` is used if the error names none."""
        return cls(error.cause, error.message, error.shard or shard, error.member)

    @property
    def outcome(self) -> Outcome:
        return Outcome.RETRYABLE if self.cause in RETRYABLE else Outcome.FAILED


class SourceFile(Struct, frozen=True, gc=False):
    """One published file; ``gc``: the collector need not examine each of a million."""

    name: str  # relative path at the source, '/'-separated
    locator: str  # its address at the source, without secrets
    size: int | None = None  # bytes; None if the source does not report it
    digest: Digest | None = None
    version: str | None = None  # its ETag or modification time


class Shard(Struct, frozen=True):
    """One published archive of the dataset; the pieces of a split archive are one shard."""

    id: str  # unique in the plan, safe as a file name, sorts in plan order
    kind: ShardKind
    files: tuple[SourceFile, ...]  # several: the pieces of a split archive, in reading order
    parts: int = 1
    joined_name: str | None = field(default=None, name="whole")  # of joined pieces
    below: str = ""  # folder of the dataset, with a final slash, for the archive's members

    @property
    def size(self) -> int | None:
        """Bytes to download; None if the source does not report all sizes."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def name(self) -> str:
        return self.joined_name or self.files[0].name

    def each_part(self) -> Iterator[Part]:
        """Its parts, in order."""
        return (Part(self.id, index, self.parts) for index in range(self.parts))


class Part(Struct, frozen=True):
    """A contiguous range of a shard's members: the ``index``-th of ``count``."""

    shard: str
    index: int
    count: int

    @property
    def id(self) -> str:
        return f"{self.shard}.p{self.index:04d}"


def shard_of(part_id: str) -> str:
    """The id of the shard of the part with that id; empty for another id."""
    return part_id.rpartition(".p")[0]


# Records files of https://huggingface.co/docs/datasets/image_dataset
IMAGEFOLDER = ("metadata.jsonl", "metadata.csv")


class Layout(Struct, frozen=True):
    """Where a dataset's records and images are."""

    # auto: detected; websight: only the records file; webdataset: samples by their key; files: none
    name: str = "auto"
    records: str = "prompts.jsonl"
    images: str = "images"
    image_field: str | None = None  # None: the first of the usual names that exists

    @property
    def has_records(self) -> bool:
        return self.name != "files"

    @property
    def records_names(self) -> tuple[str, ...]:
        """Names that the records file may have; the first one that exists is used."""
        others = IMAGEFOLDER if self.name == "auto" else ()
        return (self.records, *others) if self.has_records else ()


class Options(Struct, frozen=True):
    """The options that change a run's data or results; fixed by the plan."""

    layout: Layout = Layout()
    verify: Verify = Verify.STRUCTURE
    digest: str = "crc32"  # of the manifest
    on_bad_record: OnBadRecord = OnBadRecord.ERROR
    on_collision: OnCollision = OnCollision.ERROR
    match: Match = Match.AUTO
    links: Links = Links.REFUSE
    strip_components: int | None = None  # None: a single common top folder is stripped
    nested: bool = False  # archives inside archives, one level deep
    records_encoding: str | None = None  # None: UTF-8, UTF-16 or UTF-32, detected
    zip_encoding: str = "cp437"  # of names in zips that are not UTF-8 and declare no encoding
    max_expansion: float = 200.0  # data bytes for each archive byte, at most; zeros give 1030
    max_members: int = 50_000_000  # members of a shard, at most
    keep_archive: bool = False
    overwrite: bool = False
    preserve_times: bool = False  # of an archive's members
    folder_times: bool = True  # of the files of a copied folder
    expect_records: int | None = None
    part_size: int = 512 << 20  # bytes
    output: Output = Output.FILES
    shard_size: int = 1_000_000_000  # bytes of a shard, at most if it has several members
    shard_records: int | None = None  # records in a published shard, at most
    squashfs_compression: str = "zstd:3"  # with its level after a colon
    squashfs_block: int = 128 << 10  # bytes that are compressed together
    overlap: bool = True  # the download task also extracts
    connections: int = 8  # at once, for the whole run
    max_rate: int | None = None  # bytes a second
    stall_s: float = 60.0  # seconds without data before a connection is closed
    header_env: tuple[tuple[str, str], ...] = ()  # HTTP header, environment variable with its value

    @property
    def packs(self) -> bool:
        """Whether files are packed: each part then writes its members into one container."""
        return self.output is not Output.FILES


class SourceRef(Struct, frozen=True):
    """The source of a plan."""

    kind: SourceKind
    locator: str  # repository, first URL without secrets, DOI, or path
    revision: str | None = None  # pinned: a commit, the DOI of a version, or its number
    repo_type: str = "dataset"
    endpoint: str | None = None  # of the Hub, a store (None: the public one), a DOI's repository
    license: str | None = None
    include: tuple[str, ...] = ()  # globs of the chosen files
    exclude: tuple[str, ...] = ()
    not_copied: tuple[str, ...] = ()  # files of a local folder that are not part of its tree
    files: tuple[str, ...] = ()  # as requested: of a repository, or URLs of an object store
    join: tuple[str, ...] = ()  # globs on names, each for the pieces of one archive
    asked_revision: str | None = None  # as requested; None: the latest state

    @property
    def is_local(self) -> bool:  # then its files are read where they are
        return self.kind is SourceKind.LOCAL

    @property
    def pinned_name(self) -> str:
        """The locator and the pinned version, for messages."""
        if self.revision is None or self.revision == self.locator:
            return self.locator
        revision = self.revision[:12] if self.kind is SourceKind.HUB else self.revision
        return f"{self.locator} @ {revision}"


class Published(Struct, frozen=True):
    """A state of a dataset that was published."""

    run_id: str
    published: datetime
    revision: str | None = None  # of its source


class Plan(Struct, frozen=True, dict=True):
    """The immutable list of everything that a run does."""

    run_id: str
    source: SourceRef
    dest: str  # absolute path of the folder to publish into
    temp: str  # absolute path of the folder for archives
    shards: tuple[Shard, ...]
    options: Options
    version: str  # of the tool that made the plan
    created: datetime
    engine: str = "auto"  # as requested at launch
    download_on: str = "cluster"  # likewise; login: a shell downloads, the rest runs on Slurm
    download_tasks: int = 1  # likewise
    parallel: int | None = None  # likewise; None: all tasks, or one per core on one machine
    history: tuple[Published, ...] = ()  # earlier states of the dataset, the oldest first
    schema: int = SCHEMA

    def shard(self, shard_id: str) -> Shard:
        """The shard with that id (``KeyError`` if there is none)."""
        return self._shards_by_id[shard_id]

    @cached_property
    def _shards_by_id(self) -> dict[str, Shard]:
        return {shard.id: shard for shard in self.shards}

    def part_bytes(self, part: Part) -> int | None:
        """A part's share of its shard in bytes; None if the source did not report the size."""
        size = self.shard(part.shard).size
        return None if size is None else size // part.count

    def parts(self) -> tuple[Part, ...]:
        """Every part of every shard, in order."""
        return tuple(part for shard in self.shards for part in shard.each_part())


def placed_path(plan: Plan, shard: Shard, path: str) -> str:
    """The path below the data folder for the file ``path`` of a shard.

    With ``OnCollision.PER_SHARD`` each archive gets its own folder, named by the shard's id, in the
    images folder or beside it; records' references are changed in the same way.
    """
    if plan.options.on_collision is not OnCollision.PER_SHARD or shard.kind is ShardKind.FILE:
        return path
    layout = plan.options.layout
    if layout.has_records and path.startswith(f"{layout.images}/"):
        return f"{layout.images}/{shard.id}/{path[len(layout.images) + 1 :]}"
    return f"{shard.id}/{path}"


class Cut(Struct, frozen=True):
    """Where a part begins in a tar stream, or in a zip."""

    offset: int  # of a header: in bytes of the decompressed tar, or of the zip
    ordinal: int  # number of members before it
    globals: dict[str, str] = field(default_factory=dict)  # the pax global header valid there


class Span(Struct, frozen=True):
    """The members of an archive that a part contains, and a checksum that proves its bytes."""

    start: Cut
    end: Cut  # where the next part begins; for the last part the end mark, or a zip's directory
    crc32: str | None = None  # of a tar that is inflated up to ``end``, or of a zip's directory


class RecordsRange(Struct, frozen=True):
    """The records of one shard in the records file of a published dataset."""

    path: str  # of that file, relative to the dataset
    start: int  # bytes from its beginning
    stop: int
    crc32: str  # of these bytes
    part: int  # index of the first part of the shard with records


class Carried(Struct, frozen=True):
    """An unchanged shard whose files come from the published dataset."""

    dataset: str  # absolute path
    records: RecordsRange | None = None  # None: the shard has none
    parts: tuple[int, ...] | None = None  # indices of the parts that do; None: all


class Fetched(Struct, frozen=True):
    """The evidence of a shard: it is downloaded completely, and this was found while reading it."""

    shard: str
    format: Format
    files: tuple[str, ...]  # absolute paths, in reading order
    sizes: tuple[int, ...]  # bytes
    digests: tuple[Digest, ...]  # sha256 of each file
    mtimes_ns: tuple[int, ...]  # to detect changes of files that are read in place
    verified: bool = False  # against a digest that the source published
    in_place: bool = False  # a local file of the user: never delete it
    plain: str | None = None  # path of the decompressed tar, if one was written
    plain_start: int = 0  # offset of its first byte in the complete decompressed tar
    cuts: tuple[Cut, ...] = ()  # parts + 1 of them, for a tar with several parts
    members: int | None = None  # known if there are cuts
    data_bytes: int | None = None  # of all members, likewise
    superseded: tuple[int, ...] = ()  # ordinals of members that a later one with that path replaces
    top: str | None = None  # the single common top folder that is stripped, if there is one
    attempt: int = 0  # that downloaded it
    carried: Carried | None = None  # if its files come from the published dataset
    schema: int = SCHEMA


class Inner(Struct, frozen=True):
    """The origin of a file from a nested archive."""

    archive: str  # path of the nested archive in its shard
    ordinal: int  # of the member in the nested archive


class Entry(Struct, frozen=True, omit_defaults=True):
    """A manifest's line: one file that a part wrote."""

    path: str  # relative to the data folder
    size: int  # bytes
    crc32: str
    digest: str | None = None  # if the plan asks for one other than crc32
    problem: str | None = None  # what a check found
    raw: str | None = None  # the path's bytes in hex, if they are not UTF-8
    ordinal: int = 0  # of the member in its shard; for a nested file, of the nested archive
    inner: Inner | None = None  # for a file from a nested archive
    offset: int | None = None  # bytes into the part's container, if members are packed
    stripped: str = ""  # the folders that --strip-components has removed from the member's name

    @property
    def origin(self) -> int | None:
        """The archive that contained it: a nested one's ordinal, or None for the shard's own."""
        return None if self.inner is None else self.ordinal

    @property
    def member(self) -> int:
        """The ordinal of its member in the archive that contained it."""
        return self.ordinal if self.inner is None else self.inner.ordinal


class PartSummary(Struct, frozen=True):
    """The last line of a manifest, without which the part is not finished."""

    part: str
    files: int
    bytes: int
    members: int  # read, folders and left-out ones included
    records: bool = False  # the part contained the shard's own records file
    left_out: dict[str, int] = field(default_factory=dict)  # junk by kind, such as __MACOSX
    warnings: tuple[str, ...] = ()
    inner_records: dict[int, str] = field(default_factory=dict)  # of nested archives, by ordinal
    records_crc32: dict[str, str] = field(default_factory=dict)  # of the staged ones, by file name
    samples: bool = False  # its records were made of files with the same key
    tops: dict[str, str] = field(default_factory=dict)  # as ``_Pass.tops`` of jobs.extract.part
    span: Span | None = None  # of a tar, or of a zip that was extracted while it arrived
    container: int | None = None  # bytes of the part's container, where members are packed
    carried: bool = False  # the files were taken from the published dataset, not extracted
    crc32: str = ""  # of the lines before; empty in a manifest of an earlier version
    end: bool = True  # marks the line

    @property
    def has_records(self) -> bool:
        """Whether the part contained a records file, perhaps in a nested archive."""
        return self.records or bool(self.inner_records)


class ItemResult(Struct, frozen=True):
    """The result of one item of a task: a shard in download, a part in extract."""

    item: str
    outcome: Outcome
    files: int = 0
    bytes: int = 0
    problem: Problem | None = None
    carried: bool = False  # a part whose files were taken from the published dataset
    earlier: bool = False  # it was finished before the task began, as by the download task


class Summary(Struct, frozen=True):
    """What finalize found."""

    records: int = 0
    images: int = 0
    files: int = 0
    bytes: int = 0
    published: bool = False
    lines: tuple[str, ...] = ()  # the ✓ and ✗ lines for the user


class TaskResult(Struct, frozen=True):
    """The result of a task, written by its worker."""

    stage: Stage
    task: int
    attempt: int
    outcome: Outcome
    items: tuple[ItemResult, ...]
    host: str
    pid: int
    started: datetime
    ended: datetime
    version: str
    problem: Problem | None = None  # of the task as a whole
    peak_rss_bytes: int = 0
    cpu_s: float = 0.0
    summary: Summary | None = None  # of finalize
    schema: int = SCHEMA


class Heartbeat(Struct, frozen=True):
    """The progress of a running task; replaced every few seconds."""

    stage: Stage
    task: int
    attempt: int
    owner: str  # host:pid:start of the process that runs the task
    host: str
    started: datetime
    updated: datetime
    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    earlier_bytes: int = 0  # those of ``bytes_done`` that an earlier attempt did
    earlier_files: int = 0
    extracted_bytes: int = 0  # of archives, that a download task has extracted
    current: str | None = None  # id of the current shard or part


class Task(Struct, frozen=True):
    """The unit of work: one stage over some items (shards in download, parts in extract)."""

    stage: Stage
    number: int
    items: tuple[str, ...]
    job_id: str | None = None  # the engine's, once known


class Resources(Struct, frozen=True):
    """What a stage's jobs request from Slurm; None leaves a choice to the site."""

    time_min: int = 240
    cpus: int = 2
    mem_mb: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    sbatch_args: tuple[str, ...] = ()  # as typed, such as --nice=100
    setup: tuple[str, ...] = ()  # shell lines before the task
    launcher: str | None = None  # a command before Python, such as apptainer exec image.sif
    python: str | None = None  # that runs the tasks; None: the one that submits
    container_image: str | None = None  # for the pyxis plugin of Slurm
    container_mounts: tuple[str, ...] = ()  # SOURCE:TARGET, likewise


class Cluster(Struct, frozen=True):
    """The identity of a Slurm cluster; includes controllers, because sites may share a name."""

    name: str  # ClusterName
    controllers: tuple[str, ...] = ()  # HOST:PORT of slurmctld and its backups; empty: unknown

    def is_same(self, other: Cluster) -> bool:
        """Whether both are the same cluster, as far as their controllers are known."""
        unknown = not self.controllers or not other.controllers
        return self.name == other.name and (
            unknown or not set(self.controllers).isdisjoint(other.controllers)
        )

    def __str__(self) -> str:
        by = f" (controller {', '.join(self.controllers)})" if self.controllers else ""
        return f"{self.name}{by}"


class Submission(Struct, frozen=True):
    """One chain of jobs over everything that was unfinished when it was made."""

    number: int  # the attempt
    engine: str
    host: str
    pid: int
    created: datetime
    tasks: tuple[Task, ...]
    resources: dict[str, Resources]  # by stage; see ``resources_of``
    parallel: int  # most tasks at once
    version: str  # of the tool, which the compute nodes must have too
    retries: int = 0  # further submissions that finalize may make by itself
    refetch: tuple[str, ...] = ()  # shards whose damaged archives are downloaded again
    onward: str | None = None  # if it only downloads, in the login shell: the engine of the rest
    then: str | None = None  # the user's batch script that starts after the dataset is published
    then_job: str | None = None  # its job, once submitted
    by_itself: bool = False  # an automatic retry, by the finalize job of the previous submission
    refused: str | None = None  # why it was abandoned before all of it was submitted
    start: str = ""  # of the process ``pid``, in clock ticks since boot
    cluster: Cluster | None = None  # of its jobs; None: unknown, or not Slurm
    temp_limit: int | None = None  # bytes of archives that may be stored at a time; None: any
    most: int | None = None  # array tasks, at most, as requested at launch or resume; None: default
    schema: int = SCHEMA

    @property
    def is_local(self) -> bool:
        """Whether its tasks are processes of the launcher, on its machine."""
        return self.engine == LOCAL_ENGINE

    def task(self, stage: Stage, number: int) -> Task:
        """The task with that number (``KeyError`` if there is none)."""
        for task in self.of_stage(stage):
            if task.number == number:
                return task
        raise KeyError(f"{stage.value} task {number}")

    def of_stage(self, stage: Stage) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if task.stage is stage)

    def resources_of(self, stage: Stage) -> Resources:
        """The resources of a stage's jobs; tasks that pack need those of finalize."""
        return self.resources.get(stage.value) or self.resources[Stage.FINALIZE.value]

    def job_ids(self, stage: Stage | None = None) -> tuple[str, ...]:
        """Ids of its jobs in order, or those of one stage; see ``job_ids_of``."""
        return job_ids_of(self.tasks if stage is None else self.of_stage(stage))


def job_ids_of(tasks: Iterable[Task]) -> tuple[str, ...]:
    """The ids of the tasks' jobs (of an array's tasks the array's), each once."""
    return tuple(dict.fromkeys(t.job_id.partition("_")[0] for t in tasks if t.job_id))


def part_weights(plan: Plan) -> dict[str, int]:
    """The work of each part in archive bytes; at least 1, because an empty part is work too."""
    return {part.id: 1 + (plan.part_bytes(part) or 0) for part in plan.parts()}
