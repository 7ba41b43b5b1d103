"""Pieces of the documentation that is on any machine: for training on text that no pattern wrote.

Read are long descriptions of installed packages, docstrings (parsed, never imported), manual pages,
reST, Markdown and text files, changelogs and licences, below the folders that are given. A piece is
a title and whole paragraphs or sentences of one file, as plain text.
"""

import ast
import dataclasses
import email
import gzip
import itertools
import os
import pathlib
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ("description", "code", "text", "manual", "changelog", "licence")
WORDS = (40, 330)  # of a piece
LONG_PARAGRAPH = 120  # words
FILE_BYTES = 2_000_000  # of those that are read
LEFT_OUT = frozenset(
    "test tests testing __pycache__ site-packages idlelib lib2to3 node_modules".split()
)

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(*-])|\n(?=\s*[*-] )")
COMMON = frozenset(
    "the a an of and to is in for with that this be are or on by it as if not".split()
)


class Bounds(NamedTuple):
    """How much alike pieces may be."""

    per_file: int  # pieces
    per_package: int
    same_start: int | None  # characters: pieces that share so many are the same one; None: all


VARIED = Bounds(4, 25, 60)
WHOLE = Bounds(sys.maxsize, sys.maxsize, None)


@dataclasses.dataclass(frozen=True)
class File:
    """A file that documentation is read from; `package` is what it came with."""

    path: pathlib.Path
    kind: str
    package: str


def collect(
    folders: Sequence[pathlib.Path],
    limit: int,
    seed: int,
    kinds: Sequence[str] = KINDS,
    everything: bool = False,
) -> list[dict]:
    """At most `limit` pieces, `{"id", "text"}` each, all kinds in turn: any first part is balanced.

    The same folders and seed give the same pieces. Raises FileNotFoundError for a missing folder.

    Args:
      everything: all pieces that are not twice the same text. Else those that begin alike count as
        the same, and there are at most so many of a file and of a package (VARIED).
    """
    rng = random.Random(seed)
    files = list(itertools.chain(*map(find, folders)))
    starts, packages = set(), Counter()
    chosen = []
    for kind in kinds:
        of_kind = [file for file in files if file.kind == kind]
        rng.shuffle(of_kind)
        # Twice the share, for some kinds have less than theirs; where one is alone, all.
        share = limit if everything or len(kinds) == 1 else -(-2 * limit // len(kinds))
        bounds = WHOLE if everything else VARIED
        pieces = _of_files(of_kind, share, rng, starts, packages, bounds)
        rng.shuffle(pieces)
        chosen.append(pieces)
    turns = itertools.chain(*itertools.zip_longest(*chosen))
    return [piece for piece in turns if piece][:limit]


def _of_files(
    files: Sequence[File],
    number: int,
    rng: random.Random,
    starts: set[str],
    packages: Counter,
    bounds: Bounds,
) -> list[dict]:
    """At most `number` pieces; updates what was seen."""
    pieces = []
    for file in files:
        left = number - len(pieces)
        room = min(left, bounds.per_file, bounds.per_package - packages[file.package])
        if room <= 0:
            continue
        texts = [t for t in cut(read(file), rng) if is_prose(t)]
        rng.shuffle(texts)
        for text in texts:
            start = re.sub(r"\W+", " ", text.partition("\n")[2].lower())[: bounds.same_start]
            if start in starts or not room:
                continue
            starts.add(start)
            room -= 1
            packages[file.package] += 1
            name = f"{file.kind}/{file.package}/{file.path.name}-{zlib.crc32(text.encode()):08x}"
            pieces.append({"id": name, "text": text})
    return pieces


# ---- files


def find(folder: pathlib.Path) -> Iterator[File]:
    """The files below `folder` that hold documentation, in the order of their paths.

    Raises FileNotFoundError for a folder that does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in LEFT_OUT)
        for name in sorted(names):
            path = pathlib.Path(parent, name)
            inside = path.relative_to(folder)
            kind = kind_of(inside)
            if kind and path.is_file() and path.stat().st_size < FILE_BYTES:
                whole = name if kind == "manual" else inside.parts[0]
                yield File(path, kind, re.split(r"[.:_-]", whole)[0] or whole)


def kind_of(path: pathlib.Path) -> str | None:
    """The kind of documentation in a file by its path, None for no documentation."""
    name = path.name.lower().removesuffix(".gz")
    if path.name == "METADATA":
        return "description"
    if re.fullmatch(r".+\.[1-8]\w*", name) and path.parts[0].startswith("man"):
        return "manual"  # directly below the folder: deeper ones are translations
    if re.match(r"licen[sc]e|copying|copyright|notice", name):
        return "licence"
    if re.match(r"change|news|history|release", name) and not name.endswith(".py"):
        return "changelog"
    if name.endswith(".py"):
        return None if name.startswith("_") else "code"
    if re.match(r"readme|faq|todo", name) or name.endswith((".md", ".rst")):
        return "text"
    return "text" if name.endswith(".txt") and name not in NO_TEXTS else None


NO_TEXTS = ("top_level.txt", "entry_points.txt", "sources.txt", "requires.txt", "api_tests.txt")


# ---- text


def read(file: File) -> list[tuple[str, str]]:
    """Title and plain text of each part of a file; none of what is not UTF-8 or does not parse."""
    try:
        content = file.path.read_bytes()
        content = gzip.decompress(content) if file.path.suffix == ".gz" else content
        text = content.decode("utf-8").replace("\r\n", "\n")
    except (OSError, EOFError, ValueError, zlib.error):
        return []
    if file.kind == "code":
        return list(docstrings(text, f"{file.package}.{file.path.stem}"))
    if file.kind == "description":
        message = email.message_from_string(text)
        return [(f"{message['Name']} {message['Version']}", plain(message.get_payload()))]
    if file.kind == "manual":
        name, section = file.path.name.removesuffix(".gz").rsplit(".", 1)
        return [(f"{name}({section})", roff(text))]
    return [(f"{file.package}: {file.path.name.removesuffix('.gz')}", plain(text))]


def docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """The signature and docstring of each public class and function of a module."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = ast.get_docstring(node) or ""
        if node.name.startswith("_") or len(text.split()) < WORDS[0]:
            continue
        is_class = isinstance(node, ast.ClassDef)
        signature = f"class {node.name}" if is_class else f"{node.name}({ast.unparse(node.args)})"
        yield f"{module}: {signature}", plain(text)


def plain(text: str) -> str:
    """Markdown or reST without its pictures, links, directives and rules."""
    for pattern, by in MARKUP:
        text = pattern.sub(by, text)
    return re.sub(r"\n\s*\n+", "\n\n", text).strip()


MARKUP = [
    (re.compile(pattern, flags), by)
    for pattern, by, flags in (
        (r"<!--.*?-->", "", re.S),
        (r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", 0),  # pictures
        (r"\[([^\]\n]*)\](\([^)\n]*\)|\[[^\]\n]*\])", r"\1", 0),  # links
        (r"^\s*\[[^\]\n]+\]:.*$", "", re.M),
        (r"^\s*\.\. (\||_|image|figure|toctree|raw|include|contents|currentmodule).*$", "", re.M),
        (r"^\s*:(alt|target|width|height|scale|align|maxdepth|class):.*$", "", re.M),
        (r"^\s*\.\. [\w-]+::", "", re.M),
        (r":[\w:]+:`~?([^`<]*?)(\s*<[^`]*>)?`", r"\1", 0),
        (r"`([^`<]+?)\s*<[^`]*>`_+", r"\1", 0),
        (
            r"</?(a|b|br|code|div|em|h\d|hr|i|img|li|ol|p|picture|pre|source|span|strong|su[bp]|"
            r"summary|details|t[dhr]|table|tbody|thead|u|ul|kbd|center|sup)\b[^>\n]*>",
            "",
            re.I,
        ),
        (r"^[ \t]*[=\-~^*#+_\"'.|:]+[ \t]*$", "", re.M),  # rules
        (r"^#+ +", "", re.M),
        (r"(?<!`)``(?!`)", "`", 0),
        (r"\*\*", "", 0),
        (r"[ \t]+$", "", re.M),
    )
]


def roff(text: str) -> str:
    """The text of a manual page in man's macros, its lines filled; nothing of one in mdoc's."""
    if re.search(r"^\.Dd ", text, re.M):
        return ""
    lines, filled = [""], True
    for line in text.splitlines():
        line = _without_escapes(line)
        macro, _, rest = line.partition(" ")
        words = "".join(a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', rest))
        if not macro.startswith((".", "'")) or re.fullmatch(r"\.(B|I|[BIR]{2})", macro):
            if macro.startswith("."):
                line = rest.replace('"', "") if len(macro) == 2 else words
            if filled and lines[-1] and line[:1] not in ("", " "):
                lines[-1] += f" {line}"
            else:
                lines.append(line)
        elif macro in (".nf", ".EX", ".fi", ".EE"):
            filled = macro in (".fi", ".EE")
            lines.append("")
        elif macro in (".SH", ".SS"):
            lines += ["", rest.strip().strip('"').upper(), ""]
        elif macro in (".PP", ".P", ".LP", ".TP", ".IP", ".sp", ".HP"):
            lines += ["", *([rest.split('"')[1]] if rest.count('"') > 1 else [])]
    return re.sub(r"\n\s*\n+", "\n\n", "\n".join(lines)).strip()


def _without_escapes(line: str) -> str:
    line = re.sub(r'\\".*', "", line)
    line = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[&/,|^:%{}]|\\s[+-]?\d|\\[mM]\[\w*\]", "", line)
    line = re.sub(r"\\\((..)|\\\[(\w+)\]", lambda m: ROFF.get(m[1] or m[2], ""), line)
    line = re.sub(r"\\\*(\(..|\[\w*\]|.)|\\$", "", line)
    return re.sub(r"\\([-e ~'.])", lambda m: {"e": "\\", "~": " "}.get(m[1], m[1]), line)


ROFF = {"aq": "'", "cq": "'", "oq": "'", "lq": '"', "rq": '"', "dq": '"', "em": "-", "en": "-"}
ROFF |= {"bu": "*", "co": "(c)", "ha": "^", "ti": "~", "rs": "\\", "hy": "-", "lb": "{", "rb": "}"}


def cut(parts: list[tuple[str, str]], rng: random.Random) -> Iterator[str]:
    """Pieces of WORDS words, at ends of paragraphs or sentences; their title first."""
    for title, text in parts:
        most, piece, words = rng.randint(*WORDS), "", 0
        for passage, end in _passages(text):
            number = len(passage.split())
            if words + number > most:
                if words >= WORDS[0]:
                    yield f"{title}\n{piece.rstrip()}"
                most, piece, words = rng.randint(*WORDS), "", 0
            if number <= most:
                piece += passage + end
                words += number
        if words >= WORDS[0]:
            yield f"{title}\n{piece.rstrip()}"


def _passages(text: str) -> Iterator[tuple[str, str]]:
    """The paragraphs of a text, long ones sentence by sentence, and what comes after each."""
    for paragraph in text.split("\n\n"):
        passages = [paragraph.strip("\n")]
        if len(paragraph.split()) > LONG_PARAGRAPH:
            passages = SENTENCE_END.split(paragraph.strip())
        yield from ((p, "\n") for p in passages[:-1])
        yield passages[-1], "\n\n"


def is_prose(text: str) -> bool:
    """Whether a piece is English words more than symbols, links, or tables of them."""
    letters = [c for c in text if not c.isspace()]
    words = text.split()
    common = sum(w.lower() in COMMON for w in words)
    return (
        sum(c.isalnum() for c in letters) > 0.8 * len(letters)
        and sum(c.isdigit() for c in letters) < 0.25 * len(letters)
        and sum(c.isascii() for c in letters) > 0.98 * len(letters)
        and common > 0.06 * len(words)
        and len(re.findall(r"https?:|www\.|@", text)) <= 1 + len(words) / 40
        and len(letters) < 9 * len(words)
        and "\0" not in text
    )
