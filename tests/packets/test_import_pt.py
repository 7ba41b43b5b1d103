"""Released adapters import exactly; files that are none, or that mean harm, are refused."""

import hashlib
import json
import pathlib
import pickle
import random
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets import import_pt
from kvpacket_jax.packets.import_pt import read_pt

FOLDER = pathlib.Path(__file__).parents[1] / "resources" / "published"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
FILES = sorted(FOLDER.glob("*.pt"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_equals_what_torch_reads(path, tmp_path):
    adapter, rest = read_pt(path)
    adapter_lib.save_adapter(tmp_path / "adapter", adapter, {"model": None, "rest": rest})
    loaded = adapter_lib.load_adapter(tmp_path / "adapter")
    assert loaded.primer is None and loaded.writer is None
    for name in ("header", "trailer"):
        expected, array = EXPECTED[path.name][name], np.asarray(getattr(loaded, name))
        assert list(array.shape) == expected["shape"]
        assert (
            hashlib.sha256(array.astype("<f4").tobytes()).hexdigest() == expected["float32_sha256"]
        )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def repack(path: pathlib.Path, target: pathlib.Path, change) -> pathlib.Path:
    """A copy of a released file with `change(name, bytes)` applied to each entry."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_pickled_code_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    payload = pickle.dumps({"header": Evil(mark), "trailer": 1}, protocol=2)
    target = repack(
        FILES[0], tmp_path / "evil.pt", lambda n, b: payload if n.endswith("data.pkl") else b
    )
    with pytest.raises(ValueError, match="it asks for"):
        read_pt(target)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "what"),
    [("doubled", "10000 values"), ("endless", "10000 values"), ("texts", "1048576 characters")],
)
def test_a_few_bytes_that_unfold_to_very_much_are_refused(kind, what, tmp_path):
    inner = [1]
    if kind == "endless":
        inner.append(inner)
    for _ in range(40):
        inner = [inner, inner]
    if kind == "texts":
        inner = ["x" * 900_000] * 9000
    beside = pickle.dumps(inner, protocol=2).removeprefix(b"\x80\x02").removesuffix(b".")

    def change(name, content):  # one more item of the dict
        if not name.endswith("data.pkl"):
            return content
        assert content.endswith(b"u.")
        return content[:-2] + pickle.SHORT_BINUNICODE + b"\x04deep" + beside + b"u."

    with pytest.raises(ValueError, match=f"has over {what} beside header and trailer"):
        read_pt(repack(FILES[0], tmp_path / "deep.pt", change))


def test_a_place_far_away_is_refused_before_room_is_made(tmp_path):
    def change(name, content):
        far = pickle.LONG_BINPUT + (1 << 30).to_bytes(4, "little")
        return content[:-1] + far + b"." if name.endswith("data.pkl") else content

    with pytest.raises(ValueError, match="it numbers over 10000 values"):
        read_pt(repack(FILES[0], tmp_path / "far.pt", change))


@pytest.mark.parametrize("part", ["data.pkl", "data/0", "data/1"])
def test_missing_or_short_entries_are_refused(part, tmp_path):
    absent = repack(FILES[0], tmp_path / "a.pt", lambda n, b: None if n.endswith(part) else b)
    short = repack(FILES[0], tmp_path / "b.pt", lambda n, b: b[:-8] if n.endswith(part) else b)
    for path in (absent, short):
        with pytest.raises(ValueError, match="not an adapter"):
            read_pt(path)


def test_further_tensors_are_not_left_out_unsaid(monkeypatch):
    load = import_pt.torch_pickle.load
    monkeypatch.setattr(
        import_pt.torch_pickle, "load", lambda raw: load(raw) | {"writer": load(raw)["header"]}
    )
    with pytest.raises(ValueError, match="tensors beside header and trailer: writer"):
        read_pt(FILES[0])


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"not a zip", pickle.dumps({"header": 1})):
        path = tmp_path / "other.pt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not an adapter"):
            read_pt(path)
    with pytest.raises(FileNotFoundError):
        read_pt(tmp_path / "absent.pt")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    target = repack(
        FILES[0],
        tmp_path / "nan.pt",
        lambda n, b: b"\xff" * len(b) if n.endswith("data/0") else b,
    )
    with pytest.raises(ValueError, match="not finite"):
        read_pt(target)


# ---- pickles that mean harm


def from_pickle(tmp_path, described: bytes):
    """Reads a released file with another pickle in it."""
    change = lambda n, b: described if n.endswith("data.pkl") else b  # noqa: E731
    return read_pt(repack(FILES[0], tmp_path / "changed.pt", change))


def test_no_opcode_changes_what_the_process_goes_on_with(tmp_path):
    """BUILD with the state of a dtype would change its itemsize everywhere."""
    for name in ("torch BFloat16Storage", "torch._utils _rebuild_tensor_v2"):
        state = pickle.dumps((3, "<", None, None, None, 7, 1, 63), protocol=2)[2:-1]
        described = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + state + b"b."
        with pytest.raises(ValueError, match="the opcode BUILD"):
            from_pickle(tmp_path, described)
    assert np.dtype(ml_dtypes.bfloat16).itemsize == 2


@pytest.mark.parametrize(
    "described",
    [
        b"\x80\x02" + b"]" * 30_000 + b".",
        b"\x80\x02)" + b"\x85" * 250_000 + b".",  # a tuple in a tuple in a tuple
        b"\x80\x02})" + b"\x85" * 200_000 + b"K\1s.",  # as the key of a dict
        b"\x80\x02" + b"(" * 200_000 + b".",
        b"\x80\x02" + b"]" * 300_000 + b".",
        b"\x80\x02" + b"N" * (1 << 20) + b".",
        b"\x80\x02a.",
        b"\x80\x02t.",
        b"\x80\x02h\x05.",
        b"\x80\x02}K\1a.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x02]",
        b"",
    ],
)
def test_a_pickle_that_is_deep_or_broken_is_refused_at_once(described, tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="is not an adapter"):
        from_pickle(tmp_path, described)
    assert time.monotonic() - began < 10


def test_flipped_pickles_are_refused_or_equal(tmp_path):
    with zipfile.ZipFile(FILES[0]) as file:
        (name,) = (n for n in file.namelist() if n.endswith("data.pkl"))
        whole = file.read(name)
    expected, _ = read_pt(FILES[0])
    rng = random.Random(0)
    for _ in range(150):
        bad = bytearray(whole)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            adapter, _ = from_pickle(tmp_path, bytes(bad))
        except ValueError as error:
            assert "is not an adapter" in str(error)
        else:
            sizes = {x.size for x in (*expected[:2], *adapter[:2])}
            assert len(sizes) == 1


def test_a_small_file_that_unfolds_to_very_much_is_refused(tmp_path):
    zeros = tmp_path / "zeros.pt"
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        file.writestr("a/data/0", bytes(1 << 24))
    with pytest.raises(ValueError, match="it is compressed"):
        read_pt(zeros)
    many = tmp_path / "many.pt"
    with zipfile.ZipFile(many, "w") as file:
        for i in range(1001):
            file.writestr(f"{i}", b"")
    with pytest.raises(ValueError, match="over 1000 entries"):
        read_pt(many)
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="it is no file"):
        read_pt(tmp_path / "endless.pt")
