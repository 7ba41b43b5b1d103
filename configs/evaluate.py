"""What to evaluate: `--config=configs/evaluate.py:NAME`, any field as `--config.field=value`.

biography        five biographies of about 100 tokens, 10 questions about each set
biography_10, biography_20, biography_64
                 ten and twenty documents, and packets of about 64 tokens: seldom trained on
niah             needles in 2,000 tokens of prose in 8 chunks
wikipedia        five paragraphs of Wikipedia
jsonl            your own file: --config.dataset.options.path=FILE
"""

from ml_collections import ConfigDict

METHODS = ("kv_packet", "no_recompute", "no_cache")

BIOGRAPHY = {"num_documents": 5, "num_questions": 10}
NEEDLES = {"num_tokens": 2000, "num_chunks": 8, "num_needles": 8, "kinds": ("multi_key",)}

# name -> data set, its options, num_samples
SETS = {
    "biography": ("biography", BIOGRAPHY, 150),
    "biography_10": ("biography", BIOGRAPHY | {"num_documents": 10}, 150),
    "biography_20": ("biography", BIOGRAPHY | {"num_documents": 20}, 150),
    "biography_64": ("biography", BIOGRAPHY | {"document_words": 40}, 150),
    "niah": ("niah", NEEDLES, 50),
    "wikipedia": ("wikipedia", {"num_documents": 5, "num_questions": 10}, 100),
    "jsonl": ("jsonl", {"path": ""}, 0),
}


def get_config(arg: str | None = None) -> ConfigDict:
    name = arg or "biography"
    if name not in SETS:
        raise ValueError(f"configs/evaluate.py knows no {arg!r}; it knows {', '.join(SETS)}.")
    dataset, options, num_samples = SETS[name]
    config = ConfigDict()
    config.model = "qwen2.5-coder-0.5b"
    config.dtype = "auto"
    config.adapter = ""  # a folder or a shipped name; empty: the one shipped for the model
    config.template = "chat"
    config.seed = 0

    config.dataset = ConfigDict({"name": dataset, "split": "test", "options": options})
    config.num_samples = num_samples  # questions; 0: all
    config.methods = METHODS  # "name" or "name:field=value,…"; full_recompute always comes first
    config.new_tokens = 32

    # Timed apart from answering, alone and interleaved.
    config.num_timed = 5  # examples
    config.runs = 3  # of each
    return config
