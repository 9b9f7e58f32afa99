"""Forms of records files: lines, one JSON array, values over several lines, tables, UTF-16.

Finalize works on JSON lines. A records file of another form is converted to a file of lines first,
and converted back when it is published.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jobs.checks import records
from jobs.errors import counted
from jobs.formats import json_text
from jobs.formats.pictures import BY_EXTENSION, extension

_HEAD = 4096  # bytes that an encoding is detected from
_CHUNK = 1 << 20  # characters read at a time
_WORD = len("-Infinity")  # the longest JSON token besides strings and numbers
_UTF_8 = ("utf-8", "utf-8-sig")
# A quote at the start of a field between tabs, but not at its end.
_has_bare_quote = re.compile(r'(?:^|\t)"(?!(?:[^"\t]|"")*"(?:\t|$))').search


class Form(str, Enum):
    """How a records file stores its records."""

    LINES = "JSON lines"
    ARRAY = "a JSON array"
    VALUES = "JSON objects over several lines"
    TABLE = "a table"


class FormError(ValueError):
    """A records file is damaged; the text says where."""


class FoundRecords(NamedTuple):
    """The records of a file as JSON lines, and their original form."""

    path: Path  # of the lines
    form: Form = Form.LINES
    encoding: str = "utf-8"  # Python's name
    delimiter: str = ""  # of a table
    columns: tuple[str, ...] = ()  # likewise
    source: Path | None = None  # the original file, where its form is not lines

    @property
    def description(self) -> str:
        """The form and encoding, for messages."""
        return self.form.value + ("" if self.encoding in _UTF_8 else f" in {self.encoding.upper()}")


def form_of(name: str) -> Form | None:
    """The form that the ending of a records file's name means; None for other endings."""
    lower = name.lower()
    if lower.endswith((".csv", ".tsv")):
        return Form.TABLE
    return Form.LINES if lower.endswith((".jsonl", ".ndjson")) else None


class Beginning(NamedTuple):
    """What the beginning of a records file says about all of it."""

    name: str  # of the file; its ending marks a table
    encoding: str  # Python's name
    form: Form

    @property
    def is_plain_lines(self) -> bool:
        """Whether these are JSON lines in UTF-8, which are not converted."""
        return self.form is Form.LINES and self.encoding in _UTF_8


def beginning(path: Path, name: str, *, encoding: str | None = None) -> Beginning:
    """What the records file ``name``, in ``path``, begins like; ``encoding`` None: detected."""
    encoding = _encoding_of(path) if encoding is None else codecs.lookup(encoding).name
    form = form_of(name)
    if form is not Form.TABLE:
        form = Form.LINES
        with suppress(UnicodeDecodeError):  # if all lines are read, that is an error
            form = _form(path, name, encoding)
    return Beginning(name, encoding, form)


def as_lines(path: Path, begun: Beginning, out: Path, check: Callable[[], object]) -> FoundRecords:
    """The records in ``path`` as JSON lines: that file, or ``out`` if they have another form.

    ``begun``: its ``beginning``. ``check`` is called regularly and may raise. Memory holds one
    record. Raises ``FormError``.
    """
    found = FoundRecords(path, begun.form, begun.encoding)
    if begun.is_plain_lines:
        return found
    try:
        with _converted(path, begun) as (table, values), out.open("wb", buffering=1 << 20) as lines:
            found = found._replace(path=out, source=path)
            if table is not None:
                found = found._replace(delimiter=table.delimiter, columns=table.columns)
            for number, value in enumerate(values):
                if number % 1000 == 0:
                    check()
                lines.write(value.encode("utf-8", "surrogateescape"))
    except FormError:
        if _may_be_lines(begun):
            return FoundRecords(path)
        raise
    return found


def lines_in(path: Path, begun: Beginning) -> Iterator[bytes]:
    """The records in ``path``, which are not plain lines, as JSON lines; raises ``FormError``.

    Some may come twice if the first line is damaged.
    """
    try:
        with _converted(path, begun) as (_, values):
            for value in values:
                yield value.encode("utf-8", "surrogateescape")
    except FormError:
        if not _may_be_lines(begun):
            raise
        with path.open("rb") as file:
            yield from records.lines(file)


def _may_be_lines(begun: Beginning) -> bool:
    """Whether a damaged file may be plain lines, of which the first one is damaged."""
    return begun.form is Form.VALUES and begun.encoding in _UTF_8


@contextmanager
def _converted(path: Path, begun: Beginning) -> Iterator[tuple[_Table | None, Iterator[str]]]:
    """The text of JSON lines, and the table that they are made of, if they are."""
    name, encoding, form = begun
    try:
        with _opened(path, encoding, table=form is Form.TABLE) as text:
            if form is Form.LINES:
                yield None, iter(lambda: text.read(_CHUNK), "")
            elif form is Form.TABLE:
                table = _Table(text, name)
                yield table, (f"{row}\n" for row in table.rows())
            else:
                yield None, (json_text.on_one_line(v) + "\n" for v in _Values(text).all(form))
    except UnicodeDecodeError as error:
        raise FormError(f"is not entirely {encoding.upper()}: {error.reason}") from error


def published_form(found: Sequence[FoundRecords], name: str) -> FoundRecords:
    """The form in which these records are published together; its path is unused.

    They keep a form that all of them have; different forms, and JSON objects over several lines,
    become lines. An array becomes lines where the name's ending means lines.
    """
    forms = {each.form for each in found}
    if forms == {Form.TABLE}:
        columns = dict.fromkeys(column for each in found for column in each.columns)
        return found[0]._replace(encoding="utf-8", columns=tuple(columns))
    if forms == {Form.ARRAY} and form_of(name) is None:
        return FoundRecords(Path(), Form.ARRAY)
    return FoundRecords(Path())


def framed(lines: Iterable[bytes], form: FoundRecords) -> Iterator[bytes]:
    """Convert JSON lines to the bytes of a records file of that form."""
    if form.form is Form.ARRAY:
        before = b"[\n"
        for line in lines:
            yield before + line.rstrip(b"\r\n")
            before = b",\n"
        yield b"\n]\n"
    elif form.form is Form.TABLE:
        yield _row(form.columns, form.delimiter)
        for line in lines:
            values = json.loads(line.decode("utf-8", "surrogateescape"))
            yield _row([values.get(column) for column in form.columns], form.delimiter)
    else:
        yield from lines


def _row(values: Iterable[Any], delimiter: str) -> bytes:
    text = io.StringIO()
    # Before Python 3.13, the writer quotes a carriage return only if a line ends in one.
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(values)
    row = text.getvalue().removesuffix("\r\n") + "\n"
    return row.encode("utf-8", "surrogateescape")


def _encoding_of(path: Path) -> str:
    """UTF-8, or UTF-16 or UTF-32 with or without a byte order mark (RFC 4627, section 3)."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    encoding = json.detect_encoding(head)
    if encoding in _UTF_8:
        return encoding
    try:
        start = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return "utf-8"
    return "utf-8" if "\0" in start else encoding


def _opened(path: Path, encoding: str, *, table: bool = False) -> TextIO:
    """The text of a file; bytes that are not UTF-8 are preserved as surrogate escapes."""
    errors = "surrogateescape" if encoding in _UTF_8 else "strict"
    return path.open(encoding=encoding, errors=errors, newline="" if table else "\n")


def _form(path: Path, name: str, encoding: str) -> Form:
    """The form of a file, from its first line that is not blank.

    A file whose name does not say that it is JSON is a table if it does not begin like JSON
    (``captions.txt``, ``metadata``).
    """
    with _opened(path, encoding) as text:
        line = " "
        while line and not line.strip():
            line = text.readline(records.MAX_LINE)
        first = line.strip()
        if first[:1] not in ("{", "["):
            is_json = not first or name.lower().endswith((".json", ".jsonl", ".ndjson"))
            return Form.LINES if is_json else Form.TABLE
        try:
            is_one_line = json_text.value_at(first, 0)[1] == len(first)
        except (json.JSONDecodeError, RecursionError):
            is_one_line = False
        if is_one_line and (first[0] == "{" or text.read(_CHUNK).strip()):
            return Form.LINES
        return Form.ARRAY if first[0] == "[" else Form.VALUES


class _Values:
    """The JSON values of a text, one after the other, as their source text."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._count = 0

    def all(self, form: Form) -> Iterator[str]:
        """The elements of an array, or a sequence of values."""
        if form is Form.VALUES:
            while self._peek():
                yield self._value()
            return
        self._take("[")
        more = self._peek() != "]"
        while more:
            yield self._value()
            more = self._peek() == ","
            if more:
                self._take(",")
        self._take("]")
        if self._peek():
            raise self._error("there is more data after its end")

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = json_text.skip(self._buffer, self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                return ""
            self._fill()

    def _take(self, wanted: str) -> None:
        found = self._peek()
        if found != wanted:
            what = f"{found!r} instead of" if found else "the file ends before"
            raise self._error(f"{what} {wanted!r}")
        self._at += 1

    def _value(self) -> str:
        self._peek()
        while True:
            begin = self._at
            try:
                end = json_text.value_at(self._buffer, begin)[1]
                if end < len(self._buffer) or self._ended:
                    self._at = end
                    self._count += 1
                    return self._buffer[begin:end]
            except json.JSONDecodeError as error:
                if self._ended or not self._breaks_off(error):
                    raise self._error(error.msg.removesuffix(" at")) from error
            except RecursionError as error:
                raise self._error("nested too deeply") from error
            if len(self._buffer) - begin > records.MAX_LINE:
                raise self._error(f"longer than {records.MAX_LINE >> 20} MiB")
            self._fill()

    def _breaks_off(self, error: json.JSONDecodeError) -> bool:
        """Whether more text may help: the end of a string, a word or an escape is missing."""
        return error.pos + _WORD > len(self._buffer) or error.msg.startswith("Unterminated string")

    def _fill(self) -> None:
        """Double the buffered text, so that a long value is not parsed too often."""
        rest = self._buffer[self._at :]
        block = self._text.read(max(_CHUNK, len(rest)))
        self._ended = not block
        self._buffer, self._at = rest + block, 0

    def _error(self, fact: str) -> FormError:
        where = f"after record {self._count}" if self._count else "before its first record"
        return FormError(f"is damaged {where}: {fact}")


def _is_unquoted(text: TextIO) -> bool:
    """Whether quotes in tab-separated values are ordinary characters, as IANA defines the format.

    Most programs quote fields as in CSV; then a quote is at both ends of a field, or the field
    has several lines, which have fewer tabs.
    """
    tabs = text.readline().count("\t")
    found = False
    for line in text:
        if line.count("\t") != tabs and line.strip("\r\n"):
            found = False
            break
        found = found or _has_bare_quote(line.rstrip("\r\n")) is not None
    text.seek(0)
    return found


class _Table:
    """A CSV table with a header (RFC 4180, or with another delimiter)."""

    def __init__(self, text: TextIO, name: str) -> None:
        csv.field_size_limit(records.MAX_LINE)
        header = text.readline(records.MAX_LINE)
        text.seek(0)
        usual = "\t" if name.lower().endswith(".tsv") else ","
        self.delimiter = next((d for d in (usual, ",", "\t", ";", "|") if d in header), usual)
        is_unquoted = self.delimiter == "\t" and _is_unquoted(text)
        self._reader = csv.reader(
            text,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if is_unquoted else csv.QUOTE_MINIMAL,
            strict=True,
        )
        self.columns = tuple(self._next() or ())
        if len(set(self.columns)) < len(self.columns):
            raise FormError("has two columns with the same name in its first line")
        if any(extension(column) in BY_EXTENSION for column in self.columns):
            raise FormError("has an image instead of column names in its first line")

    def _next(self) -> list[str] | None:
        try:
            return next(self._reader, None)
        except csv.Error as error:
            raise FormError(f"is damaged at line {self._reader.line_num}: {error}") from error

    def rows(self) -> Iterator[str]:
        """Each row as a JSON object of strings; columns that the row lacks are null."""
        while (row := self._next()) is not None:
            if len(row) > len(self.columns):
                raise FormError(
                    f"has {len(row)} fields in line {self._reader.line_num}, but "
                    f"{counted(len(self.columns), 'column')} in its first line"
                )
            if row:
                missing = [None] * (len(self.columns) - len(row))
                values = dict(zip(self.columns, [*row, *missing], strict=True))
                yield json.dumps(values, ensure_ascii=False)
