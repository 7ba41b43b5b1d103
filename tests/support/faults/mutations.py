"""Damage to bytes and to JSON, drawn from a seed, over every region of a file."""

import json
import random
from collections.abc import Iterator

REGIONS = 64  # of a file, that are damaged in turn
LENGTHS = (1, 3, 16, 256)  # bytes that a change covers
# What foreign JSON has in place of what was expected.
STRANGE = (
    *(None, True, False, 0, -1, 10**18, 1e308, "", "a", "\ud800", "9" * 5000, [], {}, [[]]),
    *([None], {"": None}, {"a": {"a": {"a": 1}}}, "../../../etc/passwd", float("nan")),
)


def damaged(data: bytes, rng: random.Random, number: int, first: int = 0) -> Iterator[bytes]:
    """Versions `first` to `first + number` of an endless row of damage, region by region."""
    kinds = (_flip, _flip, _overwrite, _cut, _remove, _repeat, _swap, _zero)
    for i in range(first, first + number):
        kind = kinds[i % len(kinds)]
        place = _place(len(data), rng, i)
        changed = kind(data, place, rng)
        yield changed if changed != data else data + b"\0"


def _place(size: int, rng: random.Random, i: int) -> int:
    """A place in region i of the file; every fourth in its first kilobyte, where headers are."""
    if i % 4 == 3:
        return rng.randrange(min(size, 1024) or 1)
    width = max(size / REGIONS, 1)
    return min(int((i % REGIONS + rng.random()) * width), max(size - 1, 0))


def _flip(data: bytes, at: int, rng: random.Random) -> bytes:
    if not data:
        return b"\1"
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _overwrite(data: bytes, at: int, rng: random.Random) -> bytes:
    fresh = rng.randbytes(rng.choice(LENGTHS))
    return data[:at] + fresh + data[at + len(fresh) :]


def _zero(data: bytes, at: int, rng: random.Random) -> bytes:
    """As a power cut leaves what was not on the disk yet."""
    return data[:at] + bytes(len(data) - at)


def _cut(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at]


def _remove(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + data[at + rng.choice(LENGTHS) :]


def _repeat(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[: at + rng.choice(LENGTHS)] + data[at:]


def _swap(data: bytes, at: int, rng: random.Random) -> bytes:
    """Two blocks of the same length change places."""
    length, other = rng.choice(LENGTHS), rng.randrange(len(data) or 1)
    first, second = sorted((at, other))
    if first + length > second:
        return _flip(data, at, rng)
    one, two = data[first : first + length], data[second : second + length]
    return data[:first] + two + data[first + length : second] + one + data[second + length :]


def strange_json(text: str, rng: random.Random, number: int) -> Iterator[str]:
    """`number` versions of a JSON text with one value replaced, removed, renamed or nested."""
    value = json.loads(text)
    places = list(_places(value))
    for i in range(number):
        path = places[i % len(places)]
        changed = json.loads(text)
        match rng.randrange(8):
            case 0 if path:
                _parent(changed, path).__delitem__(path[-1])
            case 1 if path and isinstance(path[-1], str):
                parent = _parent(changed, path)
                parent[path[-1] + rng.choice(("_", "s", "2"))] = parent.pop(path[-1])
            case 2:
                depth = rng.choice((50, 2_000, 100_000))
                yield _dump(changed)[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
                continue
            case _:
                changed = _replaced(changed, path, rng.choice(STRANGE))
        yield _dump(changed)


def _dump(value) -> str:
    return json.dumps(value, ensure_ascii=True)


def _places(value, path=()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value[:20])
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _parent(value, path):
    for key in path[:-1]:
        value = value[key]
    return value


def _replaced(value, path, fresh):
    if not path:
        return fresh
    _parent(value, path)[path[-1]] = fresh
    return value
