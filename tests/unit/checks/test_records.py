"""Record lines: what is a record, and which image it names."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from jobs.checks import records
from jobs.checks.records import BadLineError, Image, Record, Where, parse


def named(path: str, *where: str | int, required: bool = True) -> Image:
    return Image(path, where, required)


@pytest.mark.parametrize(
    ("line", "image", "record_id"),
    [
        pytest.param(b'{"image": "a.png"}', named("a.png", "image"), None, id="image"),
        pytest.param(b'{"image_path": "a"}\n', named("a", "image_path"), None, id="image_path"),
        pytest.param(b'{"file_name": "a"}\r\n', named("a", "file_name"), None, id="file_name"),
        pytest.param(b'\xef\xbb\xbf{"path": "a"}', named("a", "path"), None, id="path, BOM"),
        pytest.param(b' {"path":"p","image":"i"} ', named("i", "image"), None, id="the first"),
        pytest.param(b'{"image":null,"path":"p"}', named("p", "path"), None, id="one is null"),
        pytest.param(b'{"image":"a","id":7}', named("a", "image"), "7", id="a number as id"),
        pytest.param(b'{"image":"a","id":"x"}', named("a", "image"), "x", id="a text as id"),
        pytest.param(b'{"image":"a","id":[1]}', named("a", "image"), None, id="a list as id"),
        pytest.param('{"image":"é/ü"}'.encode(), named("é/ü", "image"), None, id="UTF-8"),
        pytest.param(b'{"image":"\\u00e9"}', named("é", "image"), None, id="escaped"),
        pytest.param(
            b'{"image":{"bytes":null,"path":"a"}}',
            named("a", "image", "path"),
            None,
            id="an object",
        ),
        pytest.param(b'{"img":"a.png","id":1}', named("a.png", "img"), "1", id="no usual name"),
        pytest.param(
            b'{"image":"a","id":1.5e400}', named("a", "image"), "1.5e400", id="a huge number as id"
        ),
        pytest.param(
            b'{"image":"a","id":"\\ud83d"}', named("a", "image"), "\\ud83d", id="half a character"
        ),
    ],
)
def test_a_record_is_understood(line: bytes, image: Image, record_id: str | None) -> None:
    assert parse(line) == Record((image,), record_id)


@pytest.mark.parametrize(
    ("line", "field", "images"),
    [
        pytest.param(
            b'{"images": ["a", "b"]}', None, [named("a", "images", 0), named("b", "images", 1)],
            id="a list",
        ),
        pytest.param(
            b'{"image": [{"path": "a"}, null]}', None, [named("a", "image", 0, "path")],
            id="a list of objects",
        ),
        pytest.param(
            b'{"from": "a.png", "to": "b.jpg", "text": "x"}', None,
            [named("a.png", "from"), named("b.jpg", "to")],
            id="two fields with other names",
        ),
        pytest.param(
            b'{"image": "d/a.png", "mask": "m/a.PNG", "id": "d/1.png", "key": "d/a.png", '
            b'"file": "a.png", "url": "https://h/u.png", "text": "see\\nm/m.png"}',
            None,
            [named("d/a.png", "image"), named("m/a.PNG", "mask", required=False)],
            id="a further field beside the image",
        ),
        pytest.param(
            b'{"meta": {"image": "a"}}', "meta.image", [named("a", "meta", "image")],
            id="a field in an object",
        ),
        pytest.param(
            b'{"turns": [{"image": "a"}, {"text": "x"}, {"image": ["b"]}]}', "turns.image",
            [named("a", "turns", 0, "image"), named("b", "turns", 2, "image", 0)],
            id="a field in the objects of a list",
        ),
        pytest.param(
            b'{"a.b": "x", "a": {"b": "y"}}', "a.b", [named("x", "a.b")],
            id="a field with a dot in its name",
        ),
    ],
)  # fmt: skip
def test_a_record_may_name_several_images(
    line: bytes, field: str | None, images: list[Image]
) -> None:
    assert list(parse(line, field).images) == images


@pytest.mark.parametrize(
    "value",
    [
        r'"\ud83d"', r'"\ud83dA"', r'"\udc00\ud83d"', "NaN", "-Infinity", "1.5e400",
        "9" * 4000, "9" * 5000, "1" * 400 + ".5", "[[1e999]]", '{"image": "x", "image": "y"}',
    ],
)  # fmt: skip
def test_what_python_reads_as_json_is_a_record(value: str) -> None:
    line = f'{{"image": "a.png", "value": {value}, "value": {value}}}\r\n'.encode()
    if len(value) < 5000:  # of which Python's default limit for the digits of numbers is in the way
        json.loads(line)
    assert parse(line).images == (named("a.png", "image"),)
    assert parse(line.replace(b"value", b"id")).images == (named("a.png", "image"),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[1]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"NaN", "not a JSON object"),
        (b"{", "not JSON"),
        (b'{"image": "a"', "not JSON: Expecting ',' delimiter at character 14"),
        (b'{"image": "a"} x', "not JSON: more data at character 16"),
        (b'{"image": "a\tb"}', "not JSON"),
        (b'{"image": NaN}', "names no image"),
        (b'{"image": 7, "text": "\\ud83d"}', "names no image"),
        (b"<html>", "not JSON"),
        (b'{"image": "\xc3\x28"}', "not UTF-8 at byte 12"),
        (b'{"image": "a", "text": "\xff"}', "not UTF-8 at byte 25"),
        ('{"image": "a"}'.encode("utf-16"), "not UTF-8 at byte 1"),
        (
            gzip.compress(b'{"image": "a"}', mtime=0),
            "compressed .gzip.: append .gz to its name, or",
        ),
        (b"{}", "names no image"),
        (b'{"text": "x"}', "names no image; its fields are 'text' .see --image-field"),
        (
            b'{"image": ""}',
            "none of the fields image, image_path, file_name, path, images contains a path",
        ),
        (b'{"image": []}', "names no image"),
        (b'{"image": null, "thumbnail": "a.png"}', "names no image"),
        (b'{"image": {"bytes": "xx"}}', "names no image"),
        (b'{"url": "https://host/a.png"}', "names no image"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_record_says_why(line: bytes, words: str) -> None:
    with pytest.raises(BadLineError, match=words):
        parse(line)


def test_a_given_field_is_the_only_one() -> None:
    assert parse(b'{"image": "a", "shot": "b"}', "shot").images == (named("b", "shot"),)
    with pytest.raises(BadLineError, match="no path in its field 'shot'; its fields are 'image'"):
        parse(b'{"image": "a"}', "shot")


@pytest.mark.parametrize("field", [None, "image"])
def test_paths_that_extraction_made_are_found_wherever_they_stand(field: str | None) -> None:
    made = "images/s-"
    value = {
        "image": f"{made}0.png",
        "shot": f"{made}0.png",
        "talk": [{"role": "u", "image": f"{made}1"}, {"text": f"see {made}2"}],
        "other": "images/s0.png",
    }
    first, *further = parse(json.dumps(value).encode(), field, made).images
    assert first == Image(f"{made}0.png", ("image",))
    assert [image for image in further if image.path.startswith(made)] == [
        Image(f"{made}0.png", ("shot",), required=False),
        Image(f"{made}1", ("talk", 0, "image"), required=False),
    ]


@pytest.mark.parametrize(
    ("line", "field", "path"),
    [
        (b'{"meta": {"image": "images/0.png"}}', "meta.image", "images/0.png"),
        (b'{"images": [{"id": 1, "file_name": "0.jpg"}], "info": {}}', "images.file_name", "0.jpg"),
        (b'{"m": [{"c": "text"}, {"c": [{"t": "x"}, {"src": "a.png"}]}]}', "m.c.src", "a.png"),
        (b'{"image": null, "shot": "a.png"}', "shot", "a.png"),
    ],
)
def test_a_record_without_a_usual_field_names_the_option_that_finds_its_image(
    line: bytes, field: str, path: str
) -> None:
    with pytest.raises(BadLineError, match=f"; `--image-field {field}` would name '{path}'"):
        parse(line)
    assert path in [image.path for image in parse(line, field).images]


def test_a_record_may_be_a_tree_that_is_deeper_than_functions_may_call_themselves() -> None:
    each: list[str | int] = [0, "children"]
    where = ("tree", *each * 440)
    tree = b'"images/1.png"'
    for _ in range(440):
        tree = b'[{"children": ' + tree + b"}]"
    with pytest.raises(BadLineError, match=r"`--image-field tree\.children"):
        parse(b'{"tree": ' + tree + b"}")
    line = b'{"image": "a.png", "tree": ' + tree + b"}"
    image = parse(line, made="images/").images[1]
    assert image == Image("images/1.png", where, required=False)
    assert records.rewritten(line, {image.where: "b"}) == line.replace(b"images/1.png", b"b")


def test_a_line_too_long_is_cut_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE", 1000)
    data = b'{"image": "' + b"x" * 5000 + b'"}\n{"image": "a"}\n'
    first, second = records.lines(io.BytesIO(data))
    assert len(first) == 1001
    with pytest.raises(BadLineError, match="longer than"):
        parse(first)
    assert parse(second).images[0].path == "a"


def test_lines_come_with_their_ends() -> None:
    data = b"a\r\n\n \nb"
    lines = list(records.lines(io.BytesIO(data)))
    assert lines == [b"a\r\n", b"\n", b" \n", b"b"]
    assert [records.is_blank(line) for line in lines] == [False, True, True, False]
    assert records.is_blank(b"\xef\xbb\xbf\r\n")


@pytest.mark.parametrize(
    ("line", "where", "expected"),
    [
        (
            b'{"id": 1.50, "image" :"images/a.png" , "text": "\\u00e9"}\r\n',
            ("image",),
            b'{"id": 1.50, "image" :"n\\u00e9w" , "text": "\\u00e9"}\r\n',
        ),
        (
            '\ufeff {"image": {"bytes": null, "path": "a"}, "text": "ü"}'.encode(),
            ("image", "path"),
            '\ufeff {"image": {"bytes": null, "path": "néw"}, "text": "ü"}'.encode(),
        ),
        (
            b'{"t": "\\ud83d", "image": ["a", "b"], "x": NaN}',
            ("image", 1),
            b'{"t": "\\ud83d", "image": ["a", "n\\u00e9w"], "x": NaN}',
        ),
        (b'{"image":"a","image":"b"}', ("image",), b'{"image":"a","image":"n\\u00e9w"}'),
        (b'{"a":{},"b":[],"image":"a"}', ("image",), b'{"a":{},"b":[],"image":"n\\u00e9w"}'),
    ],
)
def test_only_the_path_is_rewritten(line: bytes, where: Where, expected: bytes) -> None:
    assert records.rewritten(line, {where: "néw"}) == expected
    assert parse(expected).images[-1].path == "néw"


def test_several_paths_of_a_record_are_rewritten_at_once() -> None:
    line = b'{"turns": [{"image": "a"}, {"image": "b"}, {"image": "c"}]}'
    images = parse(line, "turns.image").images
    changes = {image.where: f"images/{image.path}.png" for image in images[::2]}
    after = json.loads(records.rewritten(line, changes))
    assert [turn["image"] for turn in after["turns"]] == ["images/a.png", "b", "images/c.png"]


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("images/a.png", None),
        ("a..b/c", None),
        ("/a", "names an absolute path"),
        ("../a", "outside the dataset"),
        ("images/../../a", "outside the dataset"),
        ("images/..", "outside the dataset"),
    ],
)
def test_paths_outside_are_reported(path: str, fact: str | None) -> None:
    found = records.problem_of_path(path)
    assert (found is None) if fact is None else (found is not None and fact in found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/a.png", "images/a.png"),
        ("./images/a.png", "images/a.png"),
        ("images//a.png", "images/a.png"),
        ("images/./a.png", "images/a.png"),
        ("images/a/", "images/a"),
        ("a./b", "a./b"),
        ("https://host//a.png", "https://host//a.png"),
    ],
)
def test_paths_are_made_plain(path: str, expected: str) -> None:
    assert records.normal_path(path) == expected


@pytest.mark.parametrize(
    "block",
    [
        b'{"image": "a.png"}\n{"image": "b.png", "id": 7}\n',
        b'{"image": "a.png"} {"image": "b.png"}\n{\n"image": "c.png"}\n',
        b'{"image": "a.png"}\r\n\r\n\xef\xbb\xbf{"image": "b.png"}\r\n{"image": "c.png"}',
        b'{"image": "\xff"}\n{"image": 3}\n[]\n{"image": NaN}\n',
    ],
)
def test_parsing_many_lines_at_once_gives_what_parsing_each_gives(block: bytes) -> None:
    def alone(line: bytes) -> Record | str | None:
        try:
            return None if records.is_blank(line) else parse(line)
        except BadLineError as error:
            return str(error)

    lines = records.split(block)
    assert lines == list(records.lines(io.BytesIO(block)))
    together, marks = records.parse_all(block)
    texts = [str(found) if isinstance(found, BadLineError) else found for found in together]
    assert texts == list(map(alone, lines))
    assert marks == sum(line.startswith(records.BOM) for line in lines)
