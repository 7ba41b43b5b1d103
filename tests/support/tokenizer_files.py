"""A tiny byte-level tokenizer, as GGUF has it and as a folder."""

import json
import types

from tokenizers.pre_tokenizers import ByteLevel

from models.checkpoint import tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    "h e",
    "l l",
    "Ġ Ġ",
    "he ll",
    "Ċ Ċ",
    "Ã ©",
    "1 2",
    "hell o",
    "Ġ hello",
    "e Ì",
    "eÌ ģ",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_reader(pre="qwen2", leave_out=(), **metadata):
    """What from_gguf reads of a GGUF file, without the file."""
    tokens = SPECIAL + sorted(ByteLevel.alphabet())
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<tool_call>", "[PAD0]"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 5) + [4, 5],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    } | {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    fields = {key: value for key, value in values.items() if key not in leave_out}
    return types.SimpleNamespace(fields=fields)


def save_tiny(folder, pre):
    tok, config = tokenizer.from_gguf(tiny_reader(pre))
    tok.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", config)
    return folder


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def set_template(folder, template):
    write(folder / "chat_template.jinja", template)
    return tokenizer.load(folder)
