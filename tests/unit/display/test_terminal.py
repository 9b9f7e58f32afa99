from __future__ import annotations

import io

import pytest

from orchestrator.display.terminal import TerminalStyle, style_of


class _Stream(io.StringIO):
    def __init__(self, *, tty: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._tty = tty
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._tty


@pytest.mark.parametrize(
    ("tty", "env", "colour"),
    [
        pytest.param(True, {}, True, id="a terminal"),
        pytest.param(False, {}, False, id="a file"),
        pytest.param(True, {"TERM": "dumb"}, False, id="a dumb terminal"),
        pytest.param(True, {"NO_COLOR": "1"}, False, id="NO_COLOR"),
        pytest.param(True, {"NO_COLOR": ""}, True, id="an empty NO_COLOR counts for nothing"),
        pytest.param(False, {"FORCE_COLOR": "1"}, True, id="FORCE_COLOR"),
        pytest.param(False, {"FORCE_COLOR": "0"}, False, id="FORCE_COLOR=0"),
        pytest.param(True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, id="NO_COLOR wins"),
    ],
)
def test_colours_follow_the_terminal_and_the_environment(
    tty: bool, env: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert style_of(_Stream(tty=tty)).colour is colour


@pytest.mark.parametrize(
    ("encoding", "unicode"), [("utf-8", True), ("UTF8", True), ("latin-1", False), ("ascii", False)]
)
def test_letters_follow_the_encoding(encoding: str, unicode: bool) -> None:
    assert style_of(_Stream(tty=True, encoding=encoding)).unicode is unicode


def test_ascii_is_used_where_letters_are_missing() -> None:
    look = TerminalStyle(unicode=False)
    assert look.encodable("✓ a · b → c ✗ ä") == "+ a - b > c x \\xe4"
    assert TerminalStyle(unicode=True).encodable("✓ ä") == "✓ ä"


def test_paint_is_nothing_without_colour() -> None:
    assert TerminalStyle(colour=False).paint("x", "red") == "x"
    assert TerminalStyle(colour=True).paint("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"
