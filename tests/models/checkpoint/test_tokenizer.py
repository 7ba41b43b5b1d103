"""Tokenizers against an independent reading of the original pre-tokenisation and merges."""

import itertools
import json
import pathlib
import unicodedata

import pytest
import regex

from models.checkpoint import tokenizer
from tests.support.tokenizer_files import (
    CHATML,
    MERGES,
    SPECIAL,
    save_tiny,
    set_template,
    tiny_reader,
    write,
)

DATA = pathlib.Path(__file__).parents[2] / "resources"
AWKWARD = json.loads((DATA / "tokenizer_texts.json").read_text("utf-8"))

# The patterns as the models' authors published them, written out whole.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def split(pre, text):
    """The words of `text`, as each model's authors cut it."""
    if pre == "smollm":
        pieces = regex.findall(r"\p{N}|\P{N}+", text)
        return [word for piece in pieces for word in regex.findall(GPT2, piece)]
    if pre == "qwen2":
        return regex.findall(QWEN2, unicodedata.normalize("NFC", text))
    return regex.findall(LLAMA3, text)


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(others)}


def reference_ids(pre, vocab, merges, text):
    """Byte-level BPE as published: the pair that was merged first in training is merged first."""
    alphabet = byte_alphabet()
    ranks = {pair: i for i, pair in enumerate(merges)}
    ids = []
    for word in split(pre, text):
        parts = [alphabet[b] for b in word.encode("utf-8")]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            i = pairs.index(best)
            parts[i : i + 2] = ["".join(best)]
        ids += [vocab[part] for part in parts]
    return ids


@pytest.fixture
def folder(tmp_path):
    """A folder with the tiny tokenizer."""
    return save_tiny(tmp_path, "qwen2")


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe"])
@pytest.mark.parametrize("text", AWKWARD)
def test_pre_tokenisation_is_the_original(pre, text):
    tok, _ = tokenizer.from_gguf(tiny_reader(pre))
    alphabet = byte_alphabet()
    expected = ["".join(alphabet[b] for b in word.encode("utf-8")) for word in split(pre, text)]
    text = tok.normalizer.normalize_str(text) if tok.normalizer else text
    assert [word for word, _ in tok.pre_tokenizer.pre_tokenize_str(text)] == expected


@pytest.mark.parametrize("pre", ["smollm", "qwen2"])
def test_ids_are_those_of_the_merges(pre, tmp_path):
    vocab = tokenizer.from_gguf(tiny_reader(pre))[0].get_vocab()
    tok = tokenizer.load(save_tiny(tmp_path, pre))
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    for text in [*AWKWARD, "hello hello  hell é e\u0301 \n\n 121212"]:
        expected = reference_ids(pre, vocab, merges, text)
        assert tok.encode(text) == expected


def test_special_tokens_are_single_ids_only_when_asked_for(folder):
    tok = tokenizer.load(folder)
    for i, token in enumerate(SPECIAL):
        assert tok.encode(token, special=True) == [i]
        ids = tok.encode(f"a{token}b")
        assert len(ids) > 3 and not set(ids) & {0, 1, 2}
        assert tok.decode(ids) == f"a{token}b"
    tool_call = tok.encode("<tool_call>", special=True)
    assert len(tool_call) == 1 and tool_call[0] not in tok.encode("<tool_call>")
    ids = tok.encode("<|im_start|>hello<|im_end|>", special=True)
    assert tok.decode(ids) == "hello"
    assert tok.decode(ids, skip_special=False) == "<|im_start|>hello<|im_end|>"
    assert tok.encode("") == [] and tok.decode([]) == ""


def test_control_tokens_that_a_file_does_not_call_special_are_text_in_a_document(
    folder,
):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in spec["added_tokens"]:
        token["special"] = False
    write(folder / "tokenizer.json", spec)
    tok = tokenizer.load(folder)
    assert len(tok.encode("<|im_end|>")) == len("<|im_end|>")
    assert tok.encode("<|im_end|>", special=True) == [2]


def test_nothing_is_added_or_cut_whatever_the_file_says(folder):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
    }
    spec["truncation"]["stride"] = 0
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            "<|endoftext|>": {
                "id": "<|endoftext|>",
                "ids": [0],
                "tokens": ["<|endoftext|>"],
            }
        },
    }
    write(folder / "tokenizer.json", spec)
    tok = tokenizer.load(folder)
    for special in (False, True):
        ids = tok.encode("abcdefgh", special=special)
        assert len(ids) == 8 and 0 not in ids


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trips(folder, text):
    tok = tokenizer.load(folder)
    assert tok.decode(tok.encode(text)) == unicodedata.normalize("NFC", text)


def test_stop_ids_come_from_every_file(folder):
    assert tokenizer.load(folder).stop_ids == (0, 2)
    write(folder / "generation_config.json", {"eos_token_id": [2, 7]})
    write(folder / "config.json", {"eos_token_id": 9})
    assert tokenizer.load(folder).stop_ids == (0, 2, 7, 9)


def test_unused_entries_are_no_tokens(folder):
    tok = tokenizer.load(folder)
    assert tok.vocab_size == len(SPECIAL) + 256 + len(MERGES) + 1
    assert tok.decode([tok.vocab_size]) == ""


def test_chat_parts_stand_around_the_users_message(folder):
    tok = tokenizer.load(folder)
    before, after = tok.chat_parts("Be brief.")
    assert before == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert after == "<|im_end|>\n<|im_start|>assistant\n"
    assert tok.encode(before, special=True).count(SPECIAL.index("<|im_start|>")) == 2


def test_thinking_is_off_unless_asked_for(folder):
    qwen3 = CHATML.replace(
        "{{ '<|im_start|>assistant\n' }}",
        "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    )
    tok = set_template(folder, qwen3)
    assert tok.chat_parts("S")[1].endswith("assistant\n<think>\n\n</think>\n\n")
    assert tok.chat_parts("S", thinking=True)[1].endswith("assistant\n")


def test_templates_have_the_special_tokens_and_trim(folder):
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}"
        "{% endfor %}"
    )
    before, after = set_template(folder, template).chat_parts(" Be brief.\n")
    assert before == "<|endoftext|>system: Be brief.<|im_end|>user: " and after == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "error"),
    [
        (
            "{{ raise_exception('System role not supported') }}",
            "System role not supported",
        ),
        ("{{ messages[1].content }}", "drops or moves the system message: 'Be brief.'"),
        ("{{ messages[0].content }}", "once; it holds it 0 times"),
        (
            "{{ messages[0].content }}{{ messages[1].content * 2 }}",
            "once; it holds it 2 times",
        ),
        ("{% if %}", "cannot render"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(folder, template, error):
    with pytest.raises(ValueError, match=error):
        set_template(folder, template).chat_parts("Be brief.")


def test_without_a_template_the_instruct_version_is_advised(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    named = [
        {"name": "tool_use", "template": "{{ 1 }}"},
        {"name": "default", "template": CHATML},
    ]
    write(folder / "tokenizer_config.json", config | {"chat_template": named})
    assert tokenizer.load(folder).chat_template == CHATML
    write(folder / "tokenizer_config.json", config | {"chat_template": None})
    tok = tokenizer.load(folder)
    assert not tok.has_chat_template
    with pytest.raises(ValueError, match="has no chat_template, .* use the instruct version"):
        tok.chat_parts("Be brief.")


def test_the_fingerprint_follows_the_files(folder):
    first = tokenizer.load(folder).fingerprint
    assert first == tokenizer.load(folder).fingerprint and len(first) == 64
    assert first != set_template(folder, CHATML + " ").fingerprint


def test_folders_without_a_tokenizer_are_refused(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json; it has .*tokenizer.model"):
        tokenizer.load(folder)
    write(folder / "tokenizer.json", "{")
    with pytest.raises(ValueError, match="not a tokenizer that can be read"):
        tokenizer.load(folder)


def test_vocabularies_that_are_not_understood_are_refused_by_name():
    with pytest.raises(ValueError, match="'gpt2' with pre-tokenizer 'tekken' is not supported"):
        tokenizer.from_gguf(tiny_reader("tekken"))
    with pytest.raises(ValueError, match="'llama' with pre-tokenizer 'default'"):
        tokenizer.from_gguf(tiny_reader("default", model="llama"))
    with pytest.raises(ValueError, match="lack tokenizer.ggml.merges; they have .*ggml.tokens"):
        tokenizer.from_gguf(tiny_reader(leave_out=["tokenizer.ggml.merges"]))


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "pre"), [("qwen2.5-coder-0.5b", "qwen2"), ("smollm2-135m", "smollm")]
)
def test_real_vocabularies(demo_folder, name, pre):
    folder = demo_folder(name)
    tok = tokenizer.load(folder)
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [tuple(merge) for merge in spec["merges"]]
    for text in AWKWARD:
        ids = tok.encode(text)
        assert ids == reference_ids(pre, spec["vocab"], merges, text)
        assert tok.decode(ids) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)
    for token in SPECIAL:
        assert len(tok.encode(token, special=True)) == 1 and len(tok.encode(token)) > 1
    before, after = tok.chat_parts("Be brief.")
    assert "Be brief." in before and after.endswith("<|im_start|>assistant\n")
    assert tok.encode("<|im_end|>", special=True)[0] in tok.stop_ids


@pytest.mark.model
def test_ids_are_those_of_qwens_own_vocabulary(demo_folder):
    # Made once from the file of ranks that Qwen published, without GGUF or its merges.
    tok = tokenizer.load(demo_folder("qwen2.5-coder-0.5b"))
    expected = json.loads((DATA / "tokenizer_qwen2_ids.json").read_text("utf-8"))
    assert [tok.encode(text) for text in AWKWARD] == expected
