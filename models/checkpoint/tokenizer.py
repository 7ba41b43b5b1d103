"""One tokenizer interface over any Hugging Face folder, and Hugging Face tokenizers from GGUF."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from models.foreign import added_tokens, chat_template, json_file, regular
from models.foreign.gguf_file import File
from models.foreign.settings import GENERATION, GGUF_TOKENIZER, TOKENIZER

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
    """Text to token ids and back, and the chat template; from `load`."""

    with_special: tokenizers.Tokenizer
    text_only: tokenizers.Tokenizer  # reads control tokens as the text they are written in
    control_ids: frozenset[int]  # added to the vocabulary, or stops: no document may write them
    config: dict[str, Any]  # tokenizer_config.json
    chat_template: str | None
    stop_ids: tuple[int, ...]  # tokens that end an answer, ascending
    fingerprint: str  # SHA-256 hex of tokenizer.json, what is added to it, and the chat template
    file: pathlib.Path  # tokenizer.json, for messages
    template_file: pathlib.Path  # where the chat template is, or would be

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

        Raises ValueError for half a surrogate pair, for text that the tokenizer's model itself
        reads as a control token, and for text that it has no tokens for.
        """
        if special:
            return _ids(self.with_special, text, self.file)
        ids = _ids(self.text_only, text, self.file)
        if self.control_ids.isdisjoint(ids):
            return ids
        around = _ids(self._without_control, text, self.file)
        # A model without the token may have no other for the same text, and drops it.
        lost = self.decode(around, skip_special=False) != self.decode(ids, skip_special=False)
        if lost or not self.control_ids.isdisjoint(around):
            tokens = [self.with_special.id_to_token(i) for i in self.control_ids.intersection(ids)]
            raise ValueError(
                f"{self.file} reads ordinary text as {json_file.names(map(str, tokens))}, which "
                "the tokenizer's files, config.json or generation_config.json have for a control "
                "token or a stop. Use a model whose stops are no text."
            )
        return around

    @functools.cached_property
    def _without_control(self) -> tokenizers.Tokenizer:
        return _without(self.text_only, self.control_ids, self.file)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; incomplete characters come out as U+FFFD."""
        return self.with_special.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def chat_parts(self, system: str, thinking: bool = False) -> tuple[str, str]:
        """The chat template around a user's message: the text before it and the text after it.

        The text before has the system message, the text after ends where the answer begins. Encode
        both with `special=True`. `thinking` is for templates that know `enable_thinking` (Qwen3).

        Raises ValueError, naming the file, if there is no chat template, or it does not fit a
        system and a user message.
        """
        if self.chat_template is None:
            raise ValueError(
                f"{self.template_file} has no chat_template, and there is no chat_template.jinja "
                "beside it: use the instruct version of the model"
            )
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": USER_MARKER},
        ]
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {
            name: added_tokens.text_of(self.config[name]) for name in names if self.config.get(name)
        }
        file = self.template_file
        chat = chat_template.render(file, self.chat_template, messages, special, thinking)
        before, marker, after = chat.partition(USER_MARKER)
        if not marker or USER_MARKER in after:
            raise ValueError(
                f"{file}: the chat template must hold the user's message once; it holds it "
                f"{chat.count(USER_MARKER)} times: {chat!r}"
            )
        # Some templates trim what they are given.
        if system.strip() not in before:
            raise ValueError(
                f"{file}: the chat template drops or moves the system message: {system!r} is not "
                f"in what stands before the user's message, {before!r}"
            )
        return before, after


def load(folder: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, downloaded or converted from GGUF.

    Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
    added_tokens.json, chat_template.jinja, config.json and generation_config.json. Raises
    FileNotFoundError without a tokenizer.json, and ValueError if a file cannot be understood.
    """
    folder = pathlib.Path(folder)
    file = folder / "tokenizer.json"
    if not file.exists():
        files = sorted(path.name for path in folder.glob("*"))
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json; it has {json_file.names(files, 20) or 'no files'}. "
            "Older formats are not read: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one."
        )
    serialised = regular.read_text(file, json_file.TOKENIZER_BYTES)
    config = json_file.read_if_there(folder / "tokenizer_config.json")
    TOKENIZER.check(folder / "tokenizer_config.json", config)
    template, template_file = _chat_template(folder, config)
    with regular.one_line(file, "is not a tokenizer that can be read"):
        with_special = tokenizers.Tokenizer.from_str(serialised)
        # A saved tokenizer may carry the lengths of somebody's training batches.
        with_special.no_truncation()
        with_special.no_padding()
        if getattr(with_special.model, "dropout", None):
            raise ValueError("its dropout is not 0: a text would have other tokens each time")
    added = added_tokens.add(folder, config, with_special)
    stop_ids = _stop_ids(folder, with_special, config)
    with regular.one_line(file, "is not a tokenizer that can be read"):
        # Two tokenizers over one model: whether added tokens are recognised is a setting, which
        # another thread would see change. Files differ in which of them they call special, Qwen's
        # leave out <tool_call>: a document must not be able to write any, whatever the file says.
        text_only = tokenizers.Tokenizer(with_special.model)
        text_only.normalizer = with_special.normalizer
        text_only.pre_tokenizer = with_special.pre_tokenizer
        unknown = with_special.token_to_id(getattr(with_special.model, "unk_token", None) or "")
        control_ids = {*with_special.get_added_tokens_decoder()} - {unknown} | {*stop_ids}
        _ids(text_only, "A text, 1 line.\n", file)
    digest = hashlib.sha256(serialised.encode("utf-8"))
    digest.update(b"\0" + (template or "").encode("utf-8"))
    if added:
        digest.update(b"\0" + "\n".join(added).encode("utf-8"))
    return Tokenizer(
        with_special=with_special,
        text_only=text_only,
        control_ids=frozenset(control_ids),
        config=config,
        chat_template=template,
        stop_ids=stop_ids,
        fingerprint=digest.hexdigest(),
        file=file,
        template_file=template_file,
    )


def _ids(tok: tokenizers.Tokenizer, text: str, file: pathlib.Path) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text is not UTF-8: it holds half of a surrogate pair") from error
    with regular.one_line(file, "cannot read the text: use another model"):
        return tok.encode(text, add_special_tokens=False).ids


def _without(
    tok: tokenizers.Tokenizer, ids: frozenset[int], file: pathlib.Path
) -> tokenizers.Tokenizer:
    """The same tokenizer, whose model does not have the tokens `ids`: it reads around them."""
    spec = json.loads(tok.to_str())
    model = spec["model"]
    if not isinstance(model.get("vocab"), dict):
        raise ValueError(
            f"{file}: a {model.get('type')} tokenizer reads text as one of its control tokens"
        )
    gone = {token for token, i in model["vocab"].items() if i in ids}
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i not in ids}
    if "merges" in model:
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        model["merges"] = [list(m) for m in pairs if not gone & {*m, "".join(m)}]
    with regular.one_line(file, "reads text as control tokens"):
        return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _chat_template(folder: pathlib.Path, config: dict[str, Any]) -> tuple[str | None, pathlib.Path]:
    """The chat template, None if there is none, and the file that it is in."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return regular.read_text(file, json_file.CONFIG_BYTES), file
    file, template = folder / "tokenizer_config.json", config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if template is not None:
        json_file.text(file, "chat_template", template)
    return template, file


def _stop_ids(
    folder: pathlib.Path, tok: tokenizers.Tokenizer, config: dict[str, Any]
) -> tuple[int, ...]:
    """The ids that end an answer, of every file that names one."""
    ids = {tok.token_to_id(text) for text in END_OF_TURN}
    special_tokens = json_file.read_if_there(folder / "special_tokens_map.json")
    for file, named in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special_tokens),
    ):
        with regular.one_line(folder / file, "has an eos_token that cannot be read"):
            text = added_tokens.text_of(named.get("eos_token"))
        if text and tok.token_to_id(text) is None:
            raise ValueError(
                f"{folder / file}: the eos_token {text!r} is not in tokenizer.json. The files are "
                "of different models: fetch them again."
            )
        ids.add(tok.token_to_id(text) if text else None)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json_file.read_if_there(folder / file)
        GENERATION.check(folder / file, {k: v for k, v in settings.items() if k != "eos_token"})
        eos = settings.get("eos_token_id")
        for i in eos if isinstance(eos, list) else [] if eos is None else [eos]:
            ids.add(json_file.integer(folder / file, "eos_token_id", i, 0, 2**31 - 1))
    return tuple(sorted(ids - {None}))


def from_gguf(file: File) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer in the metadata of a GGUF file, and the content of its tokenizer_config.json.

    Raises ValueError if the vocabulary is not byte-level BPE, its pre-tokenizer is unknown, or
    metadata are missing.
    """
    model, pre = _metadata(file, "model"), _metadata(file, "pre")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"the GGUF tokenizer {model!r} with pre-tokenizer {pre!r} is not supported; supported: "
            f"'gpt2' with {', '.join(PRE_TOKENIZERS)}. Use the model's Hugging Face hub id instead."
        )
    normalizer, pre_tokenizer, ignore_merges = PRE_TOKENIZERS[pre]()
    tokens, types = _metadata(file, "tokens"), _metadata(file, "token_type")
    # Unused entries only pad the vocabulary to the embeddings' rows.
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in _metadata(file, "merges")]

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
    GGUF_TOKENIZER.check("tokenizer.ggml", _tokenizer_keys(file))
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for gguf_name, hf_name in names.items():
        if (i := gguf_token_id(file, gguf_name)) is not None:
            config[f"{hf_name}_token"] = tokens[i]
    if (template := file.fields.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return tok, config


def gguf_stop_ids(file: File) -> list[int]:
    """The ids that the metadata of a GGUF file call ends, the main one first.

    Ends of sequence, of turn and of message. ValueError for one that is no token.
    """
    ids = [gguf_token_id(file, end) for end in ("eos", "eot", "eom")]
    return [i for i in dict.fromkeys(ids) if i is not None]


def gguf_token_id(file: File, name: str) -> int | None:
    """The id that the metadata of a GGUF file have under a name. ValueError if it is no token."""
    key = f"tokenizer.ggml.{name}_token_id"
    if (i := file.fields.get(key)) is None:
        return None
    return json_file.integer("the GGUF metadata", key, i, 0, len(_metadata(file, "tokens")) - 1)


def _tokenizer_keys(file: File) -> dict[str, Any]:
    prefix = "tokenizer.ggml."
    return {k.removeprefix(prefix): "set" for k in file.fields if k.startswith(prefix)}


def _metadata(file: File, key: str) -> Any:
    if f"tokenizer.ggml.{key}" not in file.fields:
        keys = [k for k in file.fields if k.startswith("tokenizer.")]
        raise ValueError(
            f"the GGUF metadata lack tokenizer.ggml.{key}; they have {', '.join(keys) or 'none'}"
        )
    return file.fields[f"tokenizer.ggml.{key}"]
