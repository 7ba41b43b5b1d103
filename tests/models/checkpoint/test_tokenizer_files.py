"""Files of tokenizers as they come: what documents may not write, templates, and damaged files."""

import json
import pathlib

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from models.checkpoint import tokenizer
from models.foreign import chat_template
from tests.support.tokenizer_files import CHATML, save_tiny, set_template, write


@pytest.fixture
def folder(tmp_path):
    """A folder with the tiny tokenizer."""
    return save_tiny(tmp_path, "qwen2")


def add(folder, **of_file):
    """Changes what tokenizer.json holds."""
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    write(folder / "tokenizer.json", spec | of_file)


def added_token(spec, content, **flags):
    return {
        "id": max(spec["model"]["vocab"].values()) + len(spec["added_tokens"]) + 1,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    } | flags


@pytest.mark.parametrize("text", ["[INST]", "### Assistant:", "ab ab", "hello", "hello world"])
@pytest.mark.parametrize("flags", [{}, {"normalized": True}, {"lstrip": True, "rstrip": True}])
def test_what_was_added_is_text_in_a_document(folder, text, flags):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    token = added_token(spec, text, **flags)
    add(folder, added_tokens=[*spec["added_tokens"], token])
    tok = tokenizer.load(folder)
    (id,) = tok.encode(text, special=True)
    for document in (text, f"a {text} b", text + text):
        ids = tok.encode(document)
        assert id not in ids and tok.decode(ids) == document


def test_what_the_model_itself_reads_as_control_is_read_around(folder):
    # "hello" is made by merges, and whole words skip them: two ways to a token that was added.
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    id = spec["model"]["vocab"]["hello"]
    token = added_token(spec, "hello", id=id)
    for ignore_merges in (False, True):
        model = spec["model"] | {"ignore_merges": ignore_merges}
        add(folder, added_tokens=[*spec["added_tokens"], token], model=model)
        tok = tokenizer.load(folder)
        assert tok.encode("hello", special=True) == [id]
        ids = tok.encode("say hello, hello")
        assert id not in ids and tok.decode(ids) == "say hello, hello"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<|im_end|>"}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<|im_end|>"]}),
        ("tokenizer_config.json", {"bos_token": {"content": "<|im_end|>"}}),
        ("special_tokens_map.json", {"extra_special_tokens": {"end": "<|im_end|>"}}),
        ("added_tokens.json", {"<|im_end|>": 2}),
    ],
)
def test_control_tokens_that_another_file_adds_are_added(folder, file, content):
    write(folder / "tokenizer_config.json", {"chat_template": CHATML})
    add(folder, added_tokens=[])
    before = tokenizer.load(folder).fingerprint
    write(folder / file, content)
    tok = tokenizer.load(folder)
    assert tok.fingerprint != before
    assert tok.encode("a<|im_end|>", special=True)[1:] == [2]
    assert 2 in tok.control_ids and 2 not in tok.encode("a<|im_end|>")


def test_flags_of_an_added_token_are_those_of_the_config(folder):
    content = {"2": {"content": "<|im_end|>", "lstrip": True, "special": True}}
    write(folder / "tokenizer_config.json", {"added_tokens_decoder": content})
    ids = tokenizer.load(folder).encode("a   <|im_end|>", special=True)
    assert len(ids) == 2 and ids[1] == 2


def test_no_document_writes_a_stop(folder):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    write(folder / "generation_config.json", {"eos_token_id": [spec["hello"]]})
    tok = tokenizer.load(folder)
    ids = tok.encode("hello")
    assert spec["hello"] not in ids and tok.decode(ids) == "hello"
    write(folder / "generation_config.json", {"eos_token_id": [spec["a"]]})  # there is no other a
    with pytest.raises(
        ValueError,
        match=r"tokenizer\.json reads ordinary text as a, which .* a control token or a stop",
    ):
        tokenizer.load(folder).encode("a b")


def test_a_text_that_a_tokenizer_fails_on_names_its_file(folder):
    words = ["a", "text", "1", "line", ",", "."]
    model = {"type": "WordPiece", "vocab": {w: i for i, w in enumerate(words)}}
    model |= {"unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model["max_input_chars_per_word"] = 100
    normalizer = {"type": "Lowercase"}
    pre_tokenizer = {"type": "BertPreTokenizer"}
    parts = {"model": model, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    add(folder, **parts, added_tokens=[], post_processor=None, decoder=None)
    write(folder / "tokenizer_config.json", {})
    tok = tokenizer.load(folder)
    for special in (False, True):
        with pytest.raises(
            ValueError, match=r"tokenizer\.json .*cannot read the text.*UNK"
        ) as raised:
            tok.encode("A dog", special=special)
        assert "\n" not in str(raised.value)


def test_half_a_surrogate_pair_is_no_text(folder):
    with pytest.raises(ValueError, match="not UTF-8: it holds half of a surrogate pair"):
        tokenizer.load(folder).encode("a\ud800b")


@pytest.mark.parametrize("format", ["%d %B %Y", "%H:%M:%S %f", "%s"])
def test_the_clock_of_a_template_stands_still(folder, format):
    head = "{{ 'It is ' + strftime_now('" + format + "') + (['a', 'b', 'c'] | random) }}"
    days = []
    for _ in range(2):
        chat_template._run.cache_clear()
        days.append(set_template(folder, head + CHATML).chat_parts("Be brief."))
    assert days[0] == days[1]
    if format == "%d %B %Y":
        assert days[0][0].startswith("It is 26 July 2024")


TEMPLATES = [
    CHATML,
    "{{ bos_token }}" + CHATML + "{{ date_string }}",
    "{%- for m in messages %}\n  {%- if loop.first %}{{ m | tojson(indent=2) }}{% continue %}"
    "{% endif %}"
    "\n  {% generation %}{{ m.content }}{% endgeneration %}\n{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{{ m.content | trim | upper }}{% if tools %}tools{% endif %}{% break %}{% endfor %}",
    "{{ dict(a=1) }}{{ tools is none }}{{ documents is defined }}{{ messages[1].content[::-1] }}",
    "   {% if add_generation_prompt %}   \n  yes{% endif %}\n{{ enable_thinking }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_rendered_as_transformers_does(template):
    messages = [{"role": "system", "content": " S é\n"}, {"role": "user", "content": "U"}]
    theirs, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",
        bos_token="<s>",
    )
    assert (
        chat_template.render(pathlib.Path("it"), template, messages, {"bos_token": "<s>"}, False)
        == theirs[0]
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**10 }}",
        "{{ 'x'.center(10**10) }}",
        "{% for i in range(99999) %}{{ 'x' * 10**4 }}{% endfor %}",
        "{{ " + "(" * 5000,
        "{{ messages.__class__.__mro__ }}",
        "{{ open('/etc/passwd') }}",
    ],
)
def test_a_template_has_limits(folder, template):
    with pytest.raises(ValueError, match="chat template cannot render|chat template must hold"):
        set_template(folder, template).chat_parts("Be brief.")


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        (
            "tokenizer_config.json",
            [],
            r"tokenizer_config\.json must hold a JSON object, found \[\]",
        ),
        ("tokenizer_config.json", {"eos_token": 7}, "tokenizer_config.json has an eos_token that"),
        ("tokenizer_config.json", {"eos_token": {"content": [1]}}, "eos_token that cannot be read"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, "eos_token '</s>' is not in tokenizer.js"),
        (
            "tokenizer_config.json",
            {"chat_template": 7},
            "'chat_template' must be a string, found 7",
        ),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}, 3]}, None),
        ("tokenizer_config.json", {"stop_strings": ["x"]}, "'stop_strings'"),
        (
            "special_tokens_map.json",
            {"eos_token": "</s>"},
            "special_tokens_map.json: the eos_token",
        ),
        ("special_tokens_map.json", "{", "special_tokens_map.json is not JSON"),
        (
            "generation_config.json",
            {"eos_token_id": "256"},
            "generation_config.json: 'eos_token_id' mu",
        ),
        ("generation_config.json", {"eos_token_id": [[1, 2]]}, "'eos_token_id' must be an integer"),
        ("generation_config.json", {"eos_token_id": -1}, "'eos_token_id' must be an integer"),
        ("generation_config.json", {"eos_token_id": True}, "'eos_token_id' must be an integer"),
        ("generation_config.json", {"stop_strings": ["x"]}, "'stop_strings'"),
        ("generation_config.json", {"eor_token_id": 2}, "'eor_token_id' is 2. This setting is not"),
        (
            "generation_config.json",
            "[" * 10**5,
            "generation_config.json is not JSON: fetch it again",
        ),
        ("config.json", {"eos_token_id": 1.5}, "config.json: 'eos_token_id' must be an integer"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja is not UTF-8 text"),
        ("tokenizer.json", [], "tokenizer.json is not a tokenizer that can be read"),
        ("tokenizer.json", "[" * 10**5, "tokenizer.json is not a tokenizer that can be read"),
        (
            "tokenizer.json",
            {"version": "1.0", "model": {"type": "BPE"}},
            "not a tokenizer that can",
        ),
    ],
)
def test_files_of_another_shape_are_named(folder, file, content, error):
    if isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        write(folder / file, content)
    if error is None:
        assert not tokenizer.load(folder).has_chat_template
        return
    with pytest.raises(ValueError, match=error):
        tokenizer.load(folder)


def test_the_special_tokens_map_names_a_stop_too(folder):
    write(folder / "special_tokens_map.json", {"eos_token": {"content": "<|im_start|>"}})
    assert tokenizer.load(folder).stop_ids == (0, 1, 2)


def test_a_tokenizer_that_draws_lots_is_refused(folder):
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    add(folder, model=spec["model"] | {"dropout": 0.1})
    with pytest.raises(ValueError, match="dropout is not 0: a text would have other tokens each"):
        tokenizer.load(folder)
