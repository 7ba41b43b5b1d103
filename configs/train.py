"""Training of an adapter, as of the one that the project ships.

configs/train.py         from nothing: 8 + 8 tokens, 480 steps
configs/train.py:more    goes on with the shipped one, 16 + 16 tokens, 170 steps at half the rate
configs/train.py:smoke   ten steps on the smallest model

`make adapter` is how the shipped one was made: the first, then the second. A step takes about 15 s
with the teacher's time on two CPU cores with AVX512_BF16, 36 s on two without (float32).
"""

from ml_collections import ConfigDict

from configs import arguments


def _set(name: str, weight: float, **options) -> ConfigDict:
    return ConfigDict({"name": name, "weight": weight, "options": ConfigDict(options)})


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/train.py", arg, ["more", "smoke"])
    config = ConfigDict()
    config.model = "qwen2.5-coder-0.5b"
    config.dtype = "auto"
    config.seed = 0

    config.header = 8
    config.trailer = 8
    # The embedding table's mean and deviation; or "text:…", a text's embeddings; or "adapter:…",
    # one that was trained, by its folder or shipped name.
    config.init = "embeddings"
    config.other_model = False  # takes an "adapter:…" of another model of the same width

    config.template = "chat"
    # Each entry has one number and length of documents: the more alike, the fewer programs.
    config.mixture = ConfigDict()
    for documents, weight in ((2, 0.05), (3, 0.1), (5, 0.35), (7, 0.1)):
        config.mixture[f"biography_{documents}"] = _set(
            "biography", weight, num_documents=documents, num_questions=20
        )
    config.mixture.biography_short = _set(
        "biography", 0.1, num_documents=5, num_questions=20, document_words=40
    )
    config.mixture.needles = _set(
        "niah",
        0.15,
        num_tokens=640,
        num_chunks=6,
        num_needles=8,
        num_questions=8,
        kinds=("multi_key", "multi_value"),
    )
    # Without prose that no pattern wrote, packets of other texts are worse than bare ones.
    config.mixture.wikipedia = _set("wikipedia", 0.1, num_documents=5, document_words=(50, 90))
    config.mixture.wikipedia_long = _set(
        "wikipedia", 0.05, num_documents=5, document_words=(90, 160)
    )
    config.new_tokens = 24
    config.teacher = ""  # a folder for the teacher's lessons, for many runs; empty: in the workdir

    config.num_steps = 480
    config.batch_size = 1  # sets of documents a step
    config.accumulate = 1  # steps for one update
    config.loss = "kl"
    config.reduction = "mean_questions"
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-2,
            "warmup_steps": 3,
            "decay": "cosine",  # or "linear", "constant"
            "final": 0.05,  # of the learning rate
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # 0: no clipping
        }
    )
    config.remat = True
    # On a CPU with 16-bit weights teacher and validation read and answer with a second copy of
    # them, one array a layer: twice as fast. Without room for it, False.
    config.second_copy = True

    config.checkpoint_every = 20
    config.validate_every = 120
    config.validation_sets = 1  # of each entry of the mixture

    if arg == "more":
        config.init = "adapter:qwen2.5-coder-0.5b"
        config.seed, config.header, config.trailer = 1, 16, 16
        config.optimizer.learning_rate = 5e-3
        config.num_steps, config.checkpoint_every, config.validate_every = 170, 10, 85
    elif arg == "smoke":
        config.model = "smollm2-135m"
        config.num_steps, config.checkpoint_every, config.validate_every = 10, 5, 5
        config.validation_sets = 1
        config.mixture = ConfigDict({"biography_3": config.mixture.biography_3})
    return config
