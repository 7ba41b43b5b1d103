"""Answers from a store equal those from packets built here, in this process and in another."""

import io
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

import models
from kvpacket_jax import answer_text, doubt
from kvpacket_jax.data import TEMPLATES, Question
from kvpacket_jax.measure.cost import FULL
from kvpacket_jax.measure.request import Entry
from kvpacket_jax.measure.work import count_work
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.compose import compose
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.serve import build, corpus, found, identity, request_cost, session
from kvpacket_jax.storage import packet_file, store
from kvpacket_jax.storage.packet_file import packet_path
from tests.support.corpus import text, tree, write_corpus

ROOT = pathlib.Path(__file__).parents[2]
WORDING = identity.wording("completion", "Answer.")
IDS = ["d12", "d3", "d17"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("store")
    docs = write_corpus(folder.parent / "docs.jsonl", 20)
    build.build(model, build.plan(model, None, WORDING, corpus.read_file(docs)), folder)
    return folder


def open_session(model, folder, ids=IDS, wording=WORDING, **options):
    return session.read(found.find(model, folder, ids, wording, **options))


def expected_answer(model, question: str) -> str:
    """From packets built now, without a store."""
    encoded = identity.encode(model, WORDING, Question(question, ()))
    texts = [text(int(i[1:])) for i in IDS]
    documents = [model.tokenizer.encode(WORDING.template.document_text(t)) for t in texts]
    packets = build_packets(model, None, [encoded.preamble, *documents])
    context, start = compose(model, packets)
    ready = prefill(model, (context,), encoded.questions, start, NEW_TOKENS)
    ids = generate(model, (context,), ready, NEW_TOKENS)[0]
    return WORDING.template.answer(Question(question, ()), model.tokenizer.decode(ids))


@pytest.mark.parametrize("method", ["kv_packet", "no_recompute"])
def test_an_answer_is_that_of_packets_built_now(model, folder, method):
    before = tree(folder)
    opened = open_session(model, folder, method=method)
    for question in ("When does the ferry leave?", "Where?"):
        pieces = list(session.answer(opened, question, NEW_TOKENS))
        assert "".join(pieces) == expected_answer(model, question) != ""
    assert tree(folder) == before


def answer_without_packets(model, method: str, question: str) -> str:
    """What the model answers from the full documents, or from none."""
    encoded = identity.encode(model, WORDING, Question(question, ()))
    texts = [WORDING.template.document_text(text(int(i[1:]))) for i in IDS]
    documents = [model.tokenizer.encode(t) for t in texts]
    plain = METHODS[method]()
    stored = plain.store(model, encoded.preamble, documents)
    request = Request(encoded.preamble, documents, encoded.questions[0])
    ready = plain.prepare(model, stored, request, NEW_TOKENS)
    prefilled = ready.prefilled or prefill(
        model, ready.context, encoded.questions, ready.query_start, NEW_TOKENS
    )
    ids = generate(model, ready.context, prefilled, NEW_TOKENS)[0]
    return WORDING.template.answer(Question(question, ()), model.tokenizer.decode(ids))


@pytest.mark.parametrize("method", ["full_recompute", "no_cache"])
def test_methods_without_packets_show_what_the_model_answers(model, folder, method):
    opened = open_session(model, folder, method=method)
    for question in ("When does the ferry leave?", "Where?"):
        expected = answer_without_packets(model, method, question)
        assert "".join(session.answer(opened, question, NEW_TOKENS)) == expected != ""


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (" \n", "The question is empty"),
        ("the f\udcfcnf", "not UTF-8 text: byte fc after 'the f'"),
    ],
)
def test_a_question_that_is_none_is_refused(model, folder, question, message):
    with pytest.raises(ValueError, match=message):
        list(session.answer(open_session(model, folder), question))


@pytest.mark.parametrize("end", ["quit", "exit", ""])
def test_a_session_ends_where_it_is_told_to(monkeypatch, end):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"one?\n  \n two? \n{end}\n" + "three?" * bool(end))
    )
    assert list(session.questions()) == ["one?", "two?"]


def test_ctrl_c_in_a_file_of_questions_is_no_end(monkeypatch):
    """The rest has no answers: the status must tell. At a prompt it is how one leaves."""

    def pressed(prompt=""):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", pressed)
    for terminal in (True, False):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr(sys.stdin, "isatty", lambda terminal=terminal: terminal, raising=False)
        if terminal:
            assert list(session.questions()) == []
        else:
            with pytest.raises(KeyboardInterrupt):
                list(session.questions())


LETTERS = {0: b"\xc3", 1: b"\xa9", 2: b"a ", 3: b"\n"}  # 0 and 1 are one character together


@pytest.mark.parametrize(
    ("blocks", "pieces"),
    [
        ([[2], [0], [1], [2]], ["a", " \u00e9", "a"]),
        ([[2, 0], [1, 3, 2], [2]], ["a", " \u00e9"]),  # ends with the line
        ([[3, 2], [2, 3], [2]], ["a", " a"]),  # an empty line comes before the answer
        ([[2], [0]], ["a", " \ufffd"]),  # an incomplete character at the very end
        ([[2], [2]], ["a", " a"]),  # white space is held back: none at the end
    ],
)
def test_pieces_are_whole_characters_and_end_at_a_stop(blocks, pieces):
    def decode(ids) -> str:
        return b"".join(LETTERS[i] for i in ids).decode(errors="replace")

    left = iter(blocks)
    found = list(answer_text.pieces(left, decode, WORDING.template, Question("?", ())))
    assert found == pieces
    asked = next((n for n, block in enumerate(blocks, 1) if 3 in block[1:]), len(blocks))
    assert len(list(left)) == len(blocks) - asked  # what is not shown is not computed


def test_an_answer_after_reasoning_is_shown_when_it_is_whole():
    template, asked = TEMPLATES["chat_reasoning"], Question("?", ())
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    blocks = [list(map(ord, text)) for text in ("It is. Answer: a.", " Answer: b", "\n", "more")]
    left = iter(blocks)
    assert list(answer_text.pieces(left, decode, template, asked)) == ["b"]
    assert list(left) == blocks[3:]


def test_cost_is_that_of_the_method_with_load_beside_it(model, folder, monkeypatch):
    opened = open_session(model, folder)
    loads = []
    load = packet_file.load
    monkeypatch.setattr(packet_file, "load", lambda *a: loads.append(a) or load(*a))
    costs = request_cost.measure(opened, "Where?", runs=1)
    assert list(costs) == [request_cost.WARM, request_cost.COLD, FULL]
    warm = costs[request_cost.WARM]
    query = identity.encode(model, WORDING, Question("Where?", ())).questions[0]
    entry = Entry(opened.found.method, opened.found.method.arrange(model, opened.packets))
    counted = count_work(model, entry, Request([], [], query))
    assert {name: getattr(warm, name) for name in vars(counted)} == vars(counted)
    assert 0 < warm.flops_overhead < warm.flops_total
    assert min(warm.load_s, warm.compose_s, warm.prefill_s) > 0
    # In the chain and by itself, each warmed up first, and once for the later parts; then cold.
    assert len(loads) == 2 * (2 + 2 + 1)
    assert costs[request_cost.COLD].ttft_s > 0 and costs[FULL].ttft_s > 0
    assert costs[request_cost.COLD].tier == warm.tier == "disk" and costs[FULL].tier == "device"
    size = sum(packet_path(folder, n).stat().st_size for n in {w.name for w in opened.wanted})
    shown = request_cost.text(opened, costs)
    assert f"4 packets on disk ({size / 1e3:.3g} kB" in shown
    ratio = costs[FULL].ttft_s / warm.ttft_s  # of one round
    assert f"full_recompute takes {ratio:.1f} times the TTFT of {request_cost.WARM}" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["d1", "d33"]}, "no document 'd33'. It has d3, d13, "),
        ({"method": "cache_blend"}, "cache_blend does not answer from .* runs tokens of"),
        ({"method": "single_cache"}, "single_cache does not answer .* one cache.*kv_packet and"),
        ({"method": "x"}, "no method 'x'; there are kv_packet, no_recompute, full_recompute, no_c"),
        ({"method": "kv_paket"}, r"no method 'kv_paket' \(did you mean kv_packet\?\)"),
        ({"ids": []}, "No document was named"),
        ({"ids": "d1"}, "Documents are a list of ids, not the text 'd1'"),
        (
            {"wording": identity.wording("completion", "Be brief.")},
            "no packet of the preamble 'Be b",
        ),
        (
            {"wording": identity.wording("chat")._replace(instruction="x")},
            "has documents 'd12', 'd3', 'd17', but made with another template",
        ),
    ],
)
def test_what_is_not_there_is_named(model, folder, options, message):
    before = tree(folder)
    # The byte model has no chat template; what is asked for must be found out without one.
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_session(model, folder, **options)
    assert tree(folder) == before


def test_other_makers_are_named(model, folder, byte_model):
    adapter = adapter_lib.init(jax.random.key(0), model.params["embedding"], 3, 2)
    with pytest.raises(
        ValueError, match="'d12', 'd3', 'd17', but made with another adapter: none, not "
    ):
        open_session(model, folder, adapter=adapter)
    assert open_session(model, folder, method="no_recompute", adapter=adapter).packets
    half = models.load(str(byte_model), "bfloat16")
    with pytest.raises(ValueError, match="another dtype: float32, not bfloat16"):
        open_session(half, folder)
    with pytest.raises(FileNotFoundError, match="no store .*absent"):
        open_session(model, folder / "absent")


def test_a_damaged_packet_is_named_and_the_others_still_answer(model, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    provenance = identity.document_provenance(model, None, WORDING)
    ((name, _),) = store.find(copy, provenance, ["d3"])
    path = packet_path(copy, name)
    path.write_bytes(path.read_bytes()[:-1])
    for method in ("kv_packet", "full_recompute"):  # which reads its token ids alone
        with pytest.raises(store.Damaged, match=f"^Document 'd3': {path} is damaged"):
            open_session(model, copy, method=method)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^Document 'd3': {path} is not there"):
        open_session(model, copy)
    assert list(session.answer(open_session(model, copy, ids=["d12"]), "Where?", 4))


def test_a_damaged_preamble_is_no_documents_whatever_the_folder_is_called(model, folder, tmp_path):
    provenance = identity.document_provenance(model, None, WORDING)
    ((name, _),) = store.find(folder, provenance, ["d12"])
    copy = shutil.copytree(folder, tmp_path / name)
    path = packet_path(copy, identity.preamble_item(model, WORDING)[1].name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(store.Damaged, match=f"^{path} is damaged"):
        open_session(model, copy)


@pytest.fixture(scope="module")
def answer(byte_model, folder):
    """(flags, input) -> the finished program."""

    def run(*flags: str, input: str = "") -> subprocess.CompletedProcess:
        common = {
            "model": byte_model,
            "store": folder,
            "template": "completion",
            "adapter": "none",
            "preamble": "Answer.",
            "documents": ",".join(IDS),
            "max_new_tokens": NEW_TOKENS,
        }
        command = [sys.executable, "-m", "launch.answer"]
        command += [*(f"--{name}={value}" for name, value in common.items()), *flags]
        return subprocess.run(command, cwd=ROOT, input=input.encode(), capture_output=True)

    return run


def test_a_program_doubts_what_python_doubts():
    from launch import answer

    assert answer.RECOMPUTE_BELOW.default == doubt.RECOMPUTE_BELOW


def test_another_process_answers(model, answer):
    questions = ["When does the ferry leave?", "Where?"]
    doubted = answer(f"--query={questions[0]}")  # a random model is sure of nothing
    full = answer(f"--query={questions[0]}", "--method=full_recompute")
    expected = answer_without_packets(model, "full_recompute", questions[0])
    assert (full.returncode, full.stdout.decode()) == (0, f"{expected}\n"), full.stderr
    assert (doubted.returncode, doubted.stdout) == (0, full.stdout), doubted.stderr
    assert b"In doubt of " in doubted.stderr and b"): reading " in doubted.stderr
    # Line after line; one that is too long does not end it, and the status says that one failed.
    expected = [expected_answer(model, q) for q in questions]
    lines = answer(
        "--recompute_below=0",
        input="\n".join([questions[0], "", "x" * 4000, questions[1], "quit", "When?"]),
    )
    assert (lines.returncode, lines.stdout.decode()) == (1, "\n".join([*expected, ""]))
    assert "positions; the context of" in lines.stderr.decode()
    assert "Loading " in lines.stderr.decode()


def test_a_mistake_ends_the_program_with_a_message(answer):
    for flags, message in (
        (["--documents=d1,nothing"], b"no document 'nothing'"),
        (["--query=\udcff"], b"The question is not UTF-8"),
        (["--primer=absent"], b"There is no primer 'absent'"),
        (["--documents=\udcff"], b"The id '\\udcff' is not UTF-8 text: byte ff"),
        (["--preamble=\udcff"], b"The preamble is not UTF-8 text"),
        (["--method=no_recompute", "--adapter=primer"], b"leave out --adapter and --primer"),
        (["--store="], b"--store= names no folder"),
        (["--method=full_recompute", "--show_cost"], b"--show_cost"),
    ):
        done = answer("--query=?", *flags)
        assert done.returncode == 1 and done.stdout == b""
        assert message in done.stderr and b"Traceback" not in done.stderr
        assert b"Loading" not in done.stderr  # a mistake is named before the model is loaded


def test_mistakes_are_named_without_a_model(tmp_path):
    for check, message in (
        (lambda: session.check_question(" "), "The question is empty"),
        (
            lambda: found.check_documents(tmp_path / "absent", ["d1"]),
            "There is no store .*absent",
        ),
        (lambda: identity.wording("chatt"), r"no template 'chatt' \(did you mean chat\?\)"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            check()
