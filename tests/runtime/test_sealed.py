"""What the project writes and reads back: what is read is what was written, or it is named."""

import json
import random

import numpy as np
import pytest

from kvpacket_jax import self_questions, teacher
from kvpacket_jax.adapters import card
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.evaluate import rows, timings
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.runtime import sealed
from kvpacket_jax.teacher import Targets
from kvpacket_jax.train import log

RECORD = {"f1": 0.5, "names": ["a", "b"], "by": {"2": 1, "10": None}}
BAD = [b"", b"\0" * 40, b"{", b"[]", b"[1]", b"null", b"\xff", b"[" * 100_000]


def flips(content: bytes, count: int = 200):
    rng = random.Random(0)
    for _ in range(count):
        bad = bytearray(content)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        yield bytes(bad)


def test_a_flipped_record_is_named_or_still_says_the_same(tmp_path):
    path = tmp_path / "run.json"
    whole = json.dumps(sealed.stamped(RECORD), indent=1).encode()
    for bad in flips(whole):
        path.write_bytes(bad)
        try:
            read = sealed.read_json(path, "Remove it.")
        except sealed.Damaged as error:
            assert str(error).startswith(f"{path} is damaged") and "Remove it." in str(error)
        else:  # a flip of white space
            assert read.items() >= RECORD.items()
    for bad in BAD:
        path.write_bytes(bad)
        with pytest.raises(sealed.Damaged, match="is damaged"):
            sealed.read_json(path, "Remove it.")


def test_a_record_is_the_same_after_a_way_through_json():
    record = {2: 0.1, 10: (1, 2), "x": float("inf")}
    read = sealed.unstamped(json.loads(json.dumps(sealed.stamped(record))))
    assert read == {"2": 0.1, "10": [1, 2], "x": float("inf")}


def row(example: str, f1: float) -> dict:
    return {"example": example, "method": "no_cache", "setting": "", "f1": f1}


def test_damaged_rows_are_passed_over_and_counted_and_stay_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = rows.RowFile(path)
    written = [[row("a", 0.25)], [row("b", 0.5), row("b", 0.75)]]
    for one in written:
        file.write(one)
    assert rows.RowFile(path).rows == written[0] + written[1]
    first, second = path.read_bytes().splitlines(keepends=True)
    cut = [second[:-9], b"\0" * 30, b"[" * 100_000 + b"\n", b'{"a": 1}\n', b"\xff\n"]
    earlier = json.dumps([row("b", 0.5)]).encode()  # without digests
    for bad in [second.replace(b"0.75", b"0.95"), *cut, earlier, earlier + b"\n"]:
        path.write_bytes(first + bad)
        again = rows.RowFile(path)
        assert again.rows == written[0] and again.num_damaged == 1
        again.write(written[1])
        assert path.read_bytes() == (first + bad).removesuffix(b"\n") + b"\n" + second
        assert rows.RowFile(path).rows == written[0] + written[1]


@pytest.mark.parametrize("bad", BAD)
def test_a_damaged_run_is_named_with_what_to_do(tmp_path, bad):
    (tmp_path / "run.json").write_bytes(bad)
    with pytest.raises(ValueError, match=r"run\.json is damaged.*remove the file"):
        rows.claim(tmp_path, {"model": "m"})


@pytest.mark.parametrize("bad", BAD)
def test_damaged_timings_are_measured_again(tmp_path, monkeypatch, bad):
    path = tmp_path / "timings.json"
    path.write_bytes(bad)

    def again(*_):
        raise InterruptedError("measured again")

    monkeypatch.setattr(timings, "measure_machine", again)

    class Model:
        num_devices, dtype = 1, "float32"

    with pytest.raises(InterruptedError):
        timings.timings(path, Model, ["no_cache"], [], 1)


@pytest.mark.parametrize("bad", [*BAD, b'{"model": "m"}'])
def test_a_damaged_card_is_named(tmp_path, bad):
    path = tmp_path / "card.json"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=r"card\.json .*Remove it"):
        card.read(path, adapter_lib.empty(4))


def test_a_log_that_was_changed_is_named_and_a_cut_line_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(sealed.stamped({"step": i, "loss": 0.5})) for i in (1, 2, 3)]
    path.write_text("\n".join(lines)[:-30])
    assert [r["step"] for r in log.read(path)] == [1, 2]
    path.write_text("\n".join(lines).replace('"step": 2', '"step": 7'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: it is not what was written"):
        log.read(path)


def test_a_line_that_is_no_record_of_questions_is_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    record = '{"id": "a", "text": "x", "questions": []}\n'
    for bad in ("[]\n", record[:20] + "\n", '{"id": "a", "text": "of an input"}\n'):
        for content in (record + bad + record, record + bad):
            path.write_text(content)
            with pytest.raises(ValueError, match=r"questions\.jsonl, line 2: .*Remove the line"):
                self_questions.finished(path)
            assert path.read_text() == content


class Taught:
    """A model as far as the name of its targets needs it."""

    fingerprint, dtype = "m", "float32"

    class config:
        scan_layers = False


def test_damaged_targets_are_asked_for_again(tmp_path, monkeypatch):
    example = EncodedExample([1], [[2]], [[3], [4]])
    hidden = np.arange(12, dtype=np.float32).reshape(3, 4)
    asked = []

    def teach(*_):
        asked.append(1)
        return Targets(example, [[5, 6], [7]], hidden)

    monkeypatch.setattr(teacher, "teach", teach)
    arguments = (Taught, example, 4, tmp_path, [0])
    teacher.targets(*arguments)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    teacher.targets(*arguments)
    assert len(asked) == 1
    for bad in [*flips(whole), b"", whole[:-3], whole[:9], b"\xff" * 60]:
        path.write_bytes(bad)
        before = len(asked)
        read = teacher.targets(*arguments)
        assert read.answers == [[5, 6], [7]]
        np.testing.assert_array_equal(read.hidden, hidden)
        assert path.read_bytes() == (whole if len(asked) > before else bad)
