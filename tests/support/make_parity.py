"""Writes tests/resources/parity_<model>.npz: what `transformers` with torch computes.

Not run by the tests. Needs torch, transformers, safetensors and numpy, in an environment of their
own; the numbers committed were made with torch 2.13.0 and transformers 5.23.0:

    python tests/support/make_parity.py NAME FOLDER

FOLDER is the converted model in float32, as `models.find(NAME, "float32", cache_dir)` gives it, and
holds no more than a Hugging Face model folder: config.json, model.safetensors, tokenizer.json.
"""

import pathlib
import sys

import numpy as np
import tokenizers
import torch
import transformers

CHOSEN, TOP, SEED = 2048, 64, 0

CHAT = (
    "<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\n"
    "Which river flows through Vienna?<|im_end|>\n<|im_start|>assistant\n"
)
CODE = '''def quicksort(items):
    """Sorts a list of numbers."""
    if len(items) <= 1:
        return items
    pivot, *rest = items
    return quicksort([x for x in rest if x < pivot]) + [pivot] + quicksort(['''
FOREIGN = "Zürich liegt am nördlichen Ende des Zürichsees. 東京は日本の首都です。Москва — столица"
SHORT = "The capital of France is"
LONG = (
    " ".join(
        f"In the year {1700 + 7 * i} the town of {town} counted {311 * (i + 3)} people, and its "
        f"market was held on the {day} of every month."
        for i, (town, day) in enumerate(
            zip(
                "Ashford Barrowdale Cedarholm Dunmere Elmstead Foxbridge Grimhaven Larkton".split(),
                "first third fifth eighth ninth tenth last second".split(),
                strict=True,
            )
        )
    )
    + " The market of Foxbridge was held on the"
)
PROMPTS = (SHORT, CHAT, CODE, FOREIGN, LONG)


def main(name: str, folder: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    chosen = np.random.default_rng(SEED).choice(model.config.vocab_size, CHOSEN, replace=False)
    arrays = {"chosen": np.sort(chosen).astype(np.int32)}
    for i, text in enumerate(PROMPTS):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        top = np.argsort(-logits)[:TOP].astype(np.int32)
        arrays |= {
            f"{i}/text": np.array(text),
            f"{i}/ids": np.array(ids, np.int32),
            f"{i}/logits": logits[arrays["chosen"]],
            f"{i}/top": top,
            f"{i}/top_logits": logits[top],
            f"{i}/logsumexp": np.logaddexp.reduce(logits.astype(np.float64)),
        }
        print(len(ids), repr(tokenizer.decode([int(top[0])])), arrays[f"{i}/logsumexp"])
    path = pathlib.Path(__file__).parents[1] / "resources" / f"parity_{name}.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
