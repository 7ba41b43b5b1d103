"""Control tokens that stand beside tokenizer.json, in files that older programs wrote."""

import json
import pathlib
from typing import Any

import tokenizers

from models.foreign import json_file, regular

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Not what pads: some models do it with "!".
NAMED = ("bos_token", "eos_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


def add(folder: pathlib.Path, config: dict[str, Any], tok: tokenizers.Tokenizer) -> list[str]:
    """Adds to `tok` what only tokenizer_config.json (`config`) and its like call added tokens.

    As transformers does: without it a prompt would write them letter by letter. Returns what was
    added, in words. Raises ValueError for a token that has another id in tokenizer.json.
    """
    listed = _listed(folder, config, tok)
    texts = _named(folder / "tokenizer_config.json", config)
    file = folder / "special_tokens_map.json"
    texts |= _named(file, json_file.read_if_there(file))
    known = {t.content: _in_words(t) for t in tok.get_added_tokens_decoder().values()}
    added = [token for token in listed if known.get(token.content) != _in_words(token)]
    known |= {token.content: _in_words(token) for token in listed}
    # One that is no token yet has no row of the embeddings either.
    texts = {text for text in texts - known.keys() if tok.token_to_id(text) is not None}
    added += [_token(text) for text in sorted(texts)]
    tok.add_tokens(added)
    return [_in_words(token) for token in added]


def text_of(token: Any) -> str | None:
    """The text of a special token, which files write alone or in an object; None for none.

    Raises ValueError for what is no text.
    """
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise ValueError(f"a special token must be a text, found {json_file.brief(token)}")
    return content


def _listed(
    folder: pathlib.Path, config: dict[str, Any], tok: tokenizers.Tokenizer
) -> list[tokenizers.AddedToken]:
    """The tokens that are given with their ids, which must be those of tokenizer.json."""
    file, of_config = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if of_config is None:
        file = folder / "added_tokens.json"
        pairs = [(i, text) for text, i in json_file.read_if_there(file).items()]
    with regular.one_line(file, "has added tokens that cannot be read"):
        pairs = pairs if of_config is None else of_config.items()
        listed = [(int(i), _token(token)) for i, token in pairs]
    for i, token in listed:
        if tok.token_to_id(token.content) != i:
            raise ValueError(
                f"{file}: the added token {json_file.brief(token.content)} has the id {i}, in "
                f"tokenizer.json {tok.token_to_id(token.content)}. The files are of different "
                "models: fetch them again."
            )
    return [token for _, token in listed]


def _named(file: pathlib.Path, settings: dict[str, Any]) -> set[str]:
    """The texts of the tokens that a file calls special."""
    found = set()
    for name in NAMED:
        with regular.one_line(file, f"has an {name} that cannot be read"):
            found.add(text_of(settings.get(name)))
    for name in LISTS:
        with regular.one_line(file, f"has {name} that cannot be read"):
            tokens = settings.get(name) or []
            found |= set(map(text_of, tokens.values() if isinstance(tokens, dict) else tokens))
    return found - {None, ""}


def _in_words(token: tokenizers.AddedToken) -> str:
    return json.dumps([token.content, *(getattr(token, flag) for flag in FLAGS)])


def _token(token: Any) -> tokenizers.AddedToken:
    """An added token with its flags; one that is a text alone is special."""
    text = text_of(token)
    if not text:
        raise ValueError(f"an added token must have a text, found {json_file.brief(token)}")
    flags = token if isinstance(token, dict) else {"special": True, "normalized": False}
    return tokenizers.AddedToken(text, **{flag: flags[flag] for flag in FLAGS if flag in flags})
