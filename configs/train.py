"""Training of an adapter.

configs/train.py         a writer of rank 16 over the primer, on many kinds of documents
configs/train.py:large   for a GPU: up to twenty documents and 2,200 tokens, rank 32
configs/train.py:jsonl   for documents of your own, lines {"id": "…", "text": "…"} of
                         --config.path=FILE: the model writes the questions, and the adapter
                         that the model is shipped with learns on
configs/train.py:tokens  soft tokens alone, as the paper has it
configs/train.py:distill adds a distiller to the shipped adapter, whose other parts stay as they
                         are: it says which half, quarter or tenth of a document its packet keeps
                         (--compress=kv_distill)
configs/train.py:smoke   ten steps on the smallest model

A run has no set length: `num_steps` may grow, and a good adapter lies in the workdir after every
validation. `--config.finish=N` lets the rates fall to 0 over N steps from where the run is, and
ends it.
"""

from ml_collections import ConfigDict

from configs import arguments

NAMES = ("large", "jsonl", "tokens", "distill", "smoke")


def entry(name: str, weight: float, sizes: dict, **options) -> ConfigDict:
    """A data set of a mixture with its share; sizes are shapes.Shape's."""
    return ConfigDict({"name": name, "weight": weight, "options": ConfigDict(options), **sizes})


def kind(name: str, sets: int, sizes: dict, split: str = "validation", **options) -> ConfigDict:
    """A kind of documents to be scored on; sizes are shapes.Shape's."""
    scored = {"name": name, "split": split, "sets": sets, **sizes}
    return ConfigDict(scored | {"options": ConfigDict(options)})


def few(sizes: dict, questions: int) -> dict:
    """The sizes with so many questions at most: few are about the document that comes first."""
    return dict(sizes, questions=questions)


# Sizes that entries share, for each is a program: documents of at most `tokens`, `questions` in
# rows of at most `row` with their answers of at most `new_tokens`, `answers` tokens of all of them
# together; gradients go through `learning` of the documents.
FIVE = dict(documents=5, tokens=112, questions=16, row=32, new_tokens=12, answers=112, learning=5)
TEN = dict(FIVE, documents=10, learning=4)
PROSE = dict(documents=5, tokens=124, questions=9, row=44, new_tokens=24, answers=128, learning=5)

# Of :large, and of what others validate on and cards are measured on.
LINES = dict(documents=10, tokens=48, questions=10, row=32, new_tokens=16, answers=112, learning=10)
LIVES = dict(FIVE, documents=20, learning=20)
PAGES = dict(documents=8, tokens=280, questions=12, row=44, new_tokens=24, answers=160, learning=8)
NOTES = dict(PAGES, documents=5, tokens=120, questions=10, answers=128, learning=5)
LETTERS = dict(PAGES, documents=5, tokens=416, questions=10, answers=128, learning=5)

# An answer with three or four of a key's numbers is longer than new_tokens.
TWO_NUMBERS = dict(kinds=("multi_key", "multi_value"), num_values=2)

# Of the default mixture, tight.
LIFE = dict(FIVE, tokens=96, questions=8, row=30, answers=72)
LIVES_10 = dict(LIFE, documents=10, learning=4)
PARAGRAPHS = dict(
    documents=5, tokens=112, questions=6, row=38, new_tokens=20, answers=96, learning=5
)
CHAPTERS = dict(PARAGRAPHS, documents=4, tokens=248, learning=3)
FOLDER = dict(PARAGRAPHS, tokens=288, row=40, learning=2)
SHORT = dict(documents=10, tokens=30, questions=4, row=38, new_tokens=12, answers=40, learning=10)
NOTE = (9, 16)  # words


def _mixture() -> dict[str, ConfigDict]:
    """Documents of a request are similar, so those of a set are: of a folder, or `related`."""
    many = dict(num_train=8000, num_questions=30)
    life = dict(num_questions=60, document_words=(50, 80))
    namesakes = dict(shared_names=True, two_hop=True)
    needles = dict(num_tokens=(560, 600), num_chunks=5, num_needles=18, num_questions=18)
    many_needles = dict(num_tokens=(820, 880), num_chunks=10, num_needles=18, num_questions=18)
    lines = dict(num_documents=10, num_questions=16)
    sheets = dict(num_train=8000, num_questions=20)

    def prose(weight, sizes, name, words, **options):
        number = sizes["documents"]
        options = many | dict(num_documents=number, document_words=words) | options
        return entry(name, weight, sizes, **options)

    return {
        "lives_5": entry("biography", 0.08, LIFE, num_documents=5, **life),
        "lives_10": entry("biography", 0.08, LIVES_10, num_documents=(9, 10), **life, **namesakes),
        "facts": entry("biography", 0.03, SHORT, one_fact=True, document_words=(14, 24), **lines),
        "needles": entry("niah", 0.04, PARAGRAPHS, **TWO_NUMBERS, **needles),
        "needles_10": entry("niah", 0.08, LIVES_10, kinds=("multi_key",), **many_needles),
        "sheets": entry("sheets", 0.05, PARAGRAPHS, document_words=(50, 74), **sheets),
        # Long lists, half the time all of one kind: values are taken from the wrong one of them.
        "long_sheets": entry(
            "sheets", 0.05, FOLDER, num_documents=5, document_words=(140, 160), **sheets
        ),
        "wikipedia": prose(0.1, PARAGRAPHS, "wikipedia", (56, 110), related=True),
        "wikipedia_long": prose(0.09, CHAPTERS, "wikipedia", (130, 200)),
        "everyday_lines": prose(0.06, SHORT, "everyday", NOTE, notes=True),
        "everyday_short": prose(0.07, PARAGRAPHS, "everyday", (40, 85)),
        "everyday": prose(0.27, FOLDER, "everyday", (40, 320)),
    }


def _validation() -> dict[str, ConfigDict]:
    """Without own_docs: adapters are not chosen by what their cards are measured on."""
    needles = dict(num_tokens=2000, num_chunks=8, num_needles=16, kinds=("multi_key",))
    life, prose = dict(num_questions=120), dict(num_questions=30)
    lines, notes = LINES | {"row": 48}, NOTES | {"row": 56}
    return {
        "biography": kind("biography", 10, few(FIVE, 6), num_documents=5, **life),
        "biography_10": kind("biography", 8, few(TEN, 6), num_documents=10, **life),
        "needles": kind("niah", 16, few(PAGES, 4), num_questions=16, **needles),
        "wikipedia": kind("wikipedia", 16, few(notes, 5), document_words=(60, 90), **prose),
        "everyday": kind("everyday", 16, few(LETTERS, 8), **prose),
        "everyday_lines": kind(
            "everyday", 24, few(lines, 2), notes=True, document_words=NOTE, num_documents=10
        ),
    }


def _large_mixture() -> dict[str, ConfigDict]:
    many = dict(num_train=8000, num_questions=30)
    life = many | dict(num_questions=120)
    needles = TWO_NUMBERS | dict(num_train=4000, num_needles=24, num_questions=24)
    five, twenty, notes, pages, letters = (
        few(sizes, 8) | {"answers": 8 * sizes["new_tokens"]}
        for sizes in (FIVE, LIVES, NOTES, PAGES, LETTERS)
    )

    def lives(weight, sizes, documents, words, **more):
        options = life | dict(num_documents=documents, document_words=words, **more)
        return entry("biography", weight, sizes, **options)

    def prose(weight, sizes, documents, words, name="wikipedia", **options):
        options = many | dict(num_documents=documents, document_words=words) | options
        return entry(name, weight, sizes, **options)

    return {
        "lives_5": lives(0.1, five, (4, 5), (50, 80)),
        "lives_20": lives(0.13, twenty, (14, 20), (50, 80), shared_names=True, two_hop=True),
        "short_lives": lives(0.05, five, 5, (36, 60)),
        "needles": entry("niah", 0.04, notes, num_tokens=(540, 640), num_chunks=5, **needles),
        "sheets": entry("sheets", 0.05, notes, document_words=(36, 56), **many),
        "needles_8": entry("niah", 0.08, pages, num_tokens=(1700, 2100), num_chunks=8, **needles),
        "wikipedia": prose(0.12, notes, (4, 5), (60, 90)),
        "wikipedia_pages": prose(0.11, pages, (6, 8), (120, 200)),
        "everyday_short": prose(0.08, notes, (4, 5), (40, 130), "everyday"),
        "everyday_pages": prose(0.12, pages, (6, 8), (100, 320), "everyday"),
        "everyday": prose(0.12, letters, (2, 5), (40, 320), "everyday"),
    }


def _large_validation() -> dict[str, ConfigDict]:
    needles = dict(num_tokens=2000, num_chunks=8, num_questions=16, kinds=("multi_key",))
    life, prose = dict(num_questions=120), dict(num_questions=30)
    return {
        "biography": kind("biography", 24, few(FIVE, 6), num_documents=5, **life),
        "biography_20": kind("biography", 16, few(LIVES, 6), num_documents=20, **life),
        "needles": kind("niah", 48, few(PAGES, 4), num_needles=16, **needles),
        "wikipedia": kind("wikipedia", 48, few(NOTES, 5), document_words=(50, 90), **prose),
        "everyday": kind("everyday", 32, few(LETTERS, 8), **prose),
    }


OPTIMIZER = {
    "learning_rate": 5e-3,  # of soft tokens
    "writer_learning_rate": 3e-4,  # and of a distiller
    "warmup_steps": 10,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "clip_norm": 4.0,  # of each microbatch's gradient, which go from 2 to 25; 0: no bound
}

# The sizes of :jsonl: longer documents are cut to whole sentences.
OWN = dict(PROSE, documents=4, tokens=248, questions=8, learning=4)
ANY_LENGTH = (1, 1_000_000)  # words of documents


def _own_mixture(corpus) -> dict[str, ConfigDict]:
    """Three in four sets are of the user's documents; the others keep what the primer can do."""
    many = dict(num_train=8000, num_questions=30)
    docs = many | dict(document_words=ANY_LENGTH, path=corpus)
    life = dict(num_documents=5, num_questions=60, document_words=(50, 80))
    return {
        "own": entry("corpus", 0.75, OWN, num_documents=4, **docs),
        "lives_5": entry("biography", 0.1, LIFE, **life),
        "notes": entry("wikipedia", 0.15, PARAGRAPHS, document_words=(60, 90), **many),
    }


def _own_validation(corpus) -> dict[str, ConfigDict]:
    """The user's documents alone, for packets are built of no others."""
    docs = dict(document_words=ANY_LENGTH, num_questions=30, num_documents=4, path=corpus)
    return {"own": kind("corpus", 12, OWN, **docs)}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/train.py", arg, NAMES)
    config = ConfigDict()
    config.model = "qwen2.5-coder-0.5b"
    config.dtype = "auto"
    # "19:23": these layers take layer 18's attention weights and cache no keys. The teacher is the
    # model without that.
    config.shared_layers = ""
    config.seed = 0

    config.header = 0  # soft tokens before and after each document
    config.trailer = 0
    config.primer = "primer"  # what packets are built after: "primer", an adapter's, or "" for none
    config.learn_primer = False  # its embeddings are learned, from the texts' on
    config.writer_rank = 16  # of the changes to the matrices that documents run through; 0: none
    config.writer_matrices = ("q", "k", "v", "o")
    config.learn_writer = True  # False: it stays as it begins
    # Documents that come first have packets of their own, which nothing is learned for.
    config.opening = True
    # With them, the share of sets (not of questions) that are read as requests are: the document
    # most like their questions first. Questions of the others are about all their documents.
    config.best_first = 0.7
    config.distiller_rank = 0  # of what says which tokens a packet keeps (kv_distill); 0: none
    config.keeps = (1.0,)  # shares of a document's slots; with a distiller, each set has one
    # "untrained"; "shipped", the model's own adapter where it has one; "text:…", soft tokens that
    # are a text's embeddings; or "adapter:…", one that was trained, by its folder or name.
    config.init = "untrained"
    config.other_model = False  # takes an adapter of another model of the same width

    config.template = "chat"
    config.mixture = ConfigDict(_mixture())
    # An adapter is as good as its worst kind here, against packets without training.
    config.validation = ConfigDict(_validation())

    config.num_steps = 1000
    config.finish = 0  # steps that the rates fall to 0 over, from where the run is; then it ends
    config.batch_size = 1  # sets of documents at once; a multiple of the replicas
    config.microbatches = 4  # of that size, each of one kind, for one update
    config.wrong_weight = 0.5  # in the loss, of questions that the teacher gets wrong
    config.loss = "kl"
    config.reduction = "mean_questions"
    config.optimizer = ConfigDict(OPTIMIZER)
    config.mean_decay = 0.97  # of the running mean, which is what is validated and saved
    # Of the writer's change: each validation scores the adapter at all of them, and it is saved at
    # the best. A smaller change is nearer to the primer's packets, which suits kinds of documents
    # that a short run has seen little of.
    config.scales = (1.0, 0.6)
    config.scan_layers = "auto"  # auto: unrolled on a CPU, scanned elsewhere
    config.remat = "auto"  # auto: everywhere but on a CPU

    config.checkpoint_every = 5
    config.validate_every = 25

    _vary(config, arg)
    return config


def _vary(config: ConfigDict, arg: str | None) -> None:
    """Makes a config what `arg` names."""
    if arg == "jsonl":
        config.path = ""  # the documents; launch.train writes questions about them
        config.corpus = ""  # the file of these questions; given, no documents are needed
        corpus = config.get_ref("corpus")
        config.init = "shipped"
        config.mixture = ConfigDict(_own_mixture(corpus))
        config.validation = ConfigDict(_own_validation(corpus))
        config.microbatches = 2
    elif arg == "large":
        config.mixture = ConfigDict(_large_mixture())
        config.validation = ConfigDict(_large_validation())
        config.writer_rank, config.optimizer.writer_learning_rate = 32, 1e-3
        config.batch_size, config.checkpoint_every, config.validate_every = 8, 50, 50
        config.num_steps = 2000  # finish ends it before
    elif arg == "tokens":
        config.header = config.trailer = 16
        config.opening = False
        config.primer, config.writer_rank, config.optimizer.clip_norm = "", 0, 0.0
    elif arg == "distill":
        config.init, config.distiller_rank = "adapter:qwen2.5-coder-0.5b", 16
        config.keeps, config.loss, config.scales = (0.5, 0.25, 0.1), "both_kl", (1.0,)
        config.learn_writer = False
        for one in config.validation.values():  # as many sets at each share
            one.sets = -(-one.sets // len(config.keeps)) * len(config.keeps)
    elif arg == "smoke":
        config.model = "smollm2-135m"
        config.num_steps, config.checkpoint_every, config.validate_every = 10, 5, 5
        config.microbatches = 1
        config.mixture = ConfigDict({"lives_5": config.mixture.lives_5})
        config.validation = ConfigDict({"biography": config.validation.biography})
        config.validation.biography.sets = 1
