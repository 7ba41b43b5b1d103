"""The picture of the idea in the README, as SVG: what runs once, and what for each request."""

import pathlib

from models.disk.files import write_whole

WIDTH, HEIGHT = 760, 300
STYLE = 'font-family="Helvetica, Arial, sans-serif" font-size="13"'
COLORS = {
    "header": "#f4a261",
    "document": "#2a9d8f",
    "primer": "#d9d9d9",
    "preamble": "#8d99ae",
    "question": "#e63946",
}


def svg() -> str:
    """Documents become packets one by one; a request lays packets side by side and runs a question.

    The same text for the same version of this file.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {STYLE}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(20, 26, "Once for each document, whatever stands beside it later", bold=True),
    ]
    for i, letter in enumerate("ABC"):
        x = 20 + 245 * i
        parts += [
            _box(x, 42, 44, "primer", "primer", dashed=True),
            _box(x + 44, 42, 12, "header"),
            _box(x + 56, 42, 118, "document", f"document {letter}"),
            _box(x + 174, 42, 12, "header"),
            _text(x + 115, 96, "↓ frozen model", middle=True),
            _packet(x + 44, 108, f"packet {letter}"),
        ]
    parts += [
        _text(20, 186, "For each request: keys move to their places, the question runs", bold=True),
        _box(20, 202, 76, "preamble", "preamble"),
        _packet(96, 202, "packet C"),
        _packet(238, 202, "packet A"),
        _box(380, 202, 110, "question", "question"),
        _text(500, 222, "→ first token of the answer"),
        _text(
            20,
            272,
            "Only what is red is computed when a question comes. The primer and the soft tokens "
            "(orange) are optional;",
        ),
        _text(20, 290, "the primer is attended to while a packet is built, and not stored."),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(x: int, y: int, width: int, kind: str, label: str = "", dashed: bool = False) -> str:
    border = 'stroke="#555" stroke-dasharray="4 3"' if dashed else 'stroke="white"'
    box = f'<rect x="{x}" y="{y}" width="{width}" height="32" fill="{COLORS[kind]}" {border}/>'
    color = "#333" if kind in ("primer", "header") else "white"
    return box + (_text(x + width // 2, y + 20, label, True, color=color) if label else "")


def _packet(x: int, y: int, label: str) -> str:
    return (
        _box(x, y, 12, "header")
        + _box(x + 12, y, 118, "document", label)
        + _box(x + 130, y, 12, "header")
    )


def _text(
    x: int, y: int, text: str, middle: bool = False, bold: bool = False, color: str = "#222"
) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="{color}"{anchor}{weight}>{text}</text>'


def write(path: str) -> None:
    """Writes the picture."""
    write_whole(pathlib.Path(path), svg())
