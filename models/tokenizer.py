"""One tokenizer interface over any Hugging Face folder, and Hugging Face tokenizers from GGUF."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

# GGUF's token types that are not plain text.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5

_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}|{_SYMBOLS_AND_SPACES}"
LLAMA3_SPLIT = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}"


# Whatever a config calls its end of sequence, these end an answer in the models that have them.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>")

USER_MARKER = "@@the user's message@@"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# GGUF names a pre-tokenizer but does not say what it is: normaliser, splits, and whether a whole
# word that is in the vocabulary is taken without going through the merges.
PRE_TOKENIZERS = {
    "smollm": lambda: (
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        ),
        False,
    ),
    "qwen2": lambda: (normalizers.NFC(), _split(QWEN2_SPLIT), False),
    "llama-bpe": lambda: (None, _split(LLAMA3_SPLIT), True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back, and the chat template. `load` makes one."""

    with_special: tokenizers.Tokenizer
    text_only: tokenizers.Tokenizer  # reads control tokens as the text they are written in
    config: dict[str, Any]  # tokenizer_config.json
    chat_template: str | None
    stop_ids: tuple[int, ...]  # tokens that end an answer, ascending
    fingerprint: str  # SHA-256 hex of tokenizer.json and the chat template

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included. The model's embeddings may have more rows."""
        return self.with_special.get_vocab_size()

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; nothing is added at its ends.

        With `special`, control tokens written in the text ("<|im_end|>") become single ids: for
        text of our own. Without, they are ordinary characters: a document cannot end its turn.
        """
        tok = self.with_special if special else self.text_only
        return tok.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; incomplete characters come out as U+FFFD."""
        return self.with_special.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def chat_parts(self, system: str, thinking: bool = False) -> tuple[str, str]:
        """The chat template around a user's message: the text before it and the text after it.

        The text before has the system message, the text after ends where the answer begins. Encode
        both with `special=True`. `thinking` is for templates that know `enable_thinking` (Qwen3).

        Raises ValueError if there is no chat template, or it does not fit a system and a user
        message.
        """
        if self.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template (neither chat_template.jinja nor "
                "chat_template in tokenizer_config.json): use the instruct version of the model"
            )
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": USER_MARKER},
        ]
        try:
            chat = _render(self.chat_template, messages, self.config, thinking)
        except jinja2.TemplateError as e:
            raise ValueError(
                f"the chat template cannot render a system and a user message: {e}"
            ) from e
        before, marker, after = chat.partition(USER_MARKER)
        if not marker or USER_MARKER in after:
            raise ValueError(
                "the chat template must hold the user's message once; it holds it "
                f"{chat.count(USER_MARKER)} times: {chat!r}"
            )
        # Some templates trim what they are given.
        if system.strip() not in before:
            raise ValueError(
                f"the chat template drops or moves the system message: {system!r} is not in what "
                f"stands before the user's message, {before!r}"
            )
        return before, after


def load(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, downloaded or converted from GGUF.

    Reads tokenizer.json and, where present, tokenizer_config.json, chat_template.jinja, config.json
    and generation_config.json. Raises FileNotFoundError without a tokenizer.json, and ValueError if
    a file cannot be understood.
    """
    folder = pathlib.Path(folder)
    file = folder / "tokenizer.json"
    if not file.exists():
        found = sorted(path.name for path in folder.glob("*"))
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json; it has {', '.join(found) or 'no files'}. Older "
            "formats are not read: AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one."
        )
    serialised = file.read_text("utf-8")
    config = _read_json(folder / "tokenizer_config.json")
    template = _chat_template(folder, config)
    try:
        with_special = tokenizers.Tokenizer.from_str(serialised)
    except Exception as e:  # tokenizers raises nothing more specific
        raise ValueError(f"{file} is not a tokenizer that can be read: {e}") from e
    # A saved tokenizer may carry the lengths of somebody's training batches.
    with_special.no_truncation()
    with_special.no_padding()
    digest = hashlib.sha256(serialised.encode("utf-8"))
    digest.update(b"\0" + (template or "").encode("utf-8"))
    return Tokenizer(
        with_special=with_special,
        text_only=_text_only(with_special),
        config=config,
        chat_template=template,
        stop_ids=_stop_ids(folder, with_special, config),
        fingerprint=digest.hexdigest(),
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e


def _text_only(tok: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    # Two tokenizers over one model, as whether special tokens are looked for is a setting that
    # another thread would see.
    plain = tokenizers.Tokenizer(tok.model)
    plain.normalizer, plain.pre_tokenizer = tok.normalizer, tok.pre_tokenizer
    # Files differ in what they call special: Qwen's leave out <|fim_prefix|> and <tool_call>, a
    # GGUF only the latter. A document must not be able to write them, whatever the file.
    added = [token for _, token in sorted(tok.get_added_tokens_decoder().items())]
    for token in added:
        token.special = token.special or bool(re.fullmatch(r"<\S+>", token.content))
    plain.add_tokens(added)
    plain.encode_special_tokens = True
    return plain


def _chat_template(folder: pathlib.Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        return {t["name"]: t["template"] for t in template}.get("default")
    return template


def _token_text(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _stop_ids(
    folder: pathlib.Path, tok: tokenizers.Tokenizer, config: dict[str, Any]
) -> tuple[int, ...]:
    texts = (_token_text(config.get("eos_token")), *END_OF_TURN)
    ids = {tok.token_to_id(text) for text in texts if text}
    for file in ("config.json", "generation_config.json"):
        eos = _read_json(folder / file).get("eos_token_id")
        ids |= set(eos) if isinstance(eos, list) else {eos}
    return tuple(sorted(ids - {None}))


# Llama 3's templates write today's date into the system message, unless they are given one (theirs,
# by default). A packet must not change at midnight.
DATE = "26 Jul 2024"


def _render(
    template: str, messages: list[dict[str, str]], config: dict[str, Any], thinking: bool
) -> str:
    # Encoding needs no transformers, and is loaded in a fraction of the time without. A template is
    # a program from the internet: for that its hardened sandbox is worth the second.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
    from transformers.utils.chat_template_utils import render_jinja_template

    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: _token_text(config[name]) for name in names if config.get(name)}
    chats, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=thinking,
        date_string=DATE,
        **special,
    )
    return chats[0]


def from_gguf(reader: Any) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer in a `gguf.GGUFReader`, and the content of its tokenizer_config.json.

    Raises ValueError if the vocabulary is not byte-level BPE, its pre-tokenizer is unknown, or
    metadata are missing.
    """
    model, pre = _metadata(reader, "model"), _metadata(reader, "pre")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; supported: "
            f"'gpt2' with {', '.join(PRE_TOKENIZERS)}. Use the model's Hugging Face hub id instead."
        )
    normalizer, pre_tokenizer, ignore_merges = PRE_TOKENIZERS[pre]()
    tokens, types = _metadata(reader, "tokens"), _metadata(reader, "token_type")
    # Unused entries only pad the vocabulary to the embeddings' rows.
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in _metadata(reader, "merges")]

    tok = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    )
    if normalizer is not None:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizer
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.decoder = decoders.ByteLevel()
    added = [
        tokenizers.AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tok.add_tokens(added)

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(vocab[t.content]): {
                "content": t.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": t.special,
            }
            for t in added
        },
    }
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for theirs, ours in names.items():
        if (field := reader.fields.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            config[f"{ours}_token"] = tokens[field.contents()]
    if (field := reader.fields.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = field.contents()
    return tok, config


def _metadata(reader: Any, key: str) -> Any:
    field = reader.fields.get(f"tokenizer.ggml.{key}")
    if field is None:
        found = [k for k in reader.fields if k.startswith("tokenizer.")]
        raise ValueError(
            f"the GGUF metadata lack tokenizer.ggml.{key}; they have {', '.join(found) or 'none'}"
        )
    return field.contents()
