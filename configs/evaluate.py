"""What to evaluate: `--config=configs/evaluate.py:NAME`, any field as `--config.field=value`.

biography        five biographies of about 100 tokens, 10 questions about each set
biography_10, biography_20, biography_64
                 ten and twenty documents, and packets of about 64 tokens: rare in training
niah             needles in 2,000 tokens of prose in 8 chunks
ruler            several needles a question, variable tracking, common words in 2,000 tokens
wikipedia        five paragraphs of Wikipedia
everyday         five documents of a folder, of the kind that adapters are trained on
own_docs         five everyday documents: price lists, manuals, minutes
own_notes        five notes of a line each
hotpot_qa        ten paragraphs, two of them gold; --config.dataset.options.folder=DIR for files
                 that are there already, --config.dataset.options.setting=fullwiki for paragraphs
                 that a retriever found
musique          twenty paragraphs, two to four gold; needs the folder;
                 --config.dataset.options.single_hop=True also asks those of the single-hop
                 questions that its questions are made of which stand alone, each once
                 both: --config.dataset.options.ids=FILE for the records of some ids,
                 --config.dataset.options.num_distractors=N for N paragraphs beside the gold ones
corpus           what launch.write_questions wrote: --config.dataset.options.path=FILE
jsonl            your own file, with the same option

Those of COMPARED are asked with every method, which on a CPU takes hours for real paragraphs:
--config.methods="('kv_packet','no_recompute')" asks with a few.

A new data set is a line in SETS, beside its line in kvpacket_jax/data/__init__.py. What a request
costs, without answers, is configs/cost.py's.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import arguments
from configs.train import ANY_LENGTH

# Every method, each that has settings with two; what the paper compares with, and InfoFlow KV.
METHODS = (
    "kv_packet",
    "primed",
    "no_recompute",
    "cache_blend:ratio=0.15",
    "cache_blend:ratio=0.3",
    "epic:tokens=8",
    "epic:tokens=16",
    "a3:ratio=0.15",
    "a3:ratio=0.3",
    "rand_recompute:ratio=0.15",
    "rand_recompute:ratio=0.3",
    "infoflow:ratio=0.15",
    "infoflow:ratio=0.3",
    "sam_kv",
    "sam_kv:initial=16,local=32,block=16",
    "single_cache",
    "sink",
    "no_cache",
)

BIOGRAPHY = {"num_documents": 5, "num_questions": 10}
NEEDLES = {"num_tokens": 2000, "num_chunks": 8, "num_needles": 8, "kinds": ("multi_key",)}

CORPUS = {"path": "", "num_documents": 5, "num_questions": 10, "document_words": ANY_LENGTH}

FEW = ("kv_packet", "primed", "no_recompute", "no_cache")
LISTS = 64  # tokens of answers that are lists: four numbers of seven digits, ten words
COMPARED = ("biography", "niah", "ruler", "hotpot_qa", "musique")  # with every method

# name -> data set, its options, num_samples
SETS = {
    "biography": ("biography", BIOGRAPHY, 150),
    "biography_10": ("biography", BIOGRAPHY | {"num_documents": 10}, 150),
    "biography_20": ("biography", BIOGRAPHY | {"num_documents": 20}, 150),
    "biography_64": ("biography", BIOGRAPHY | {"document_words": 40}, 150),
    "niah": ("niah", NEEDLES, 50),
    "ruler": ("ruler", {}, 60),
    "wikipedia": ("wikipedia", {"num_documents": 5, "num_questions": 10}, 100),
    "everyday": ("everyday", {"num_documents": 5, "num_questions": 10}, 160),
    "own_docs": ("own_docs", {}, 120),
    "own_notes": ("own_docs", {"notes": True}, 60),
    "hotpot_qa": ("hotpot_qa", {"folder": "", "num_documents": 10}, 100),
    "musique": ("musique", {"folder": "", "num_documents": 20}, 100),
    "corpus": ("corpus", CORPUS, 100),
    "jsonl": ("jsonl", {"path": ""}, 0),
}

# What else can be set, as --config.dataset.options.num_test=500; unset, it is the data set's own.
_GENERATED = {"num_test": int, "seed": int}
_PROSE = _GENERATED | {"document_words": tuple, "related": bool}
_LISTS = ("num_needles", "num_queries", "num_chains", "num_hops", "num_common", "common", "rare")
FURTHER = {
    "biography": _GENERATED | {"shared_names": bool, "two_hop": bool},
    "niah": _GENERATED,
    "ruler": _GENERATED
    | {"num_tokens": int, "num_chunks": int, "kinds": tuple}
    | dict.fromkeys(_LISTS, int),
    "wikipedia": _PROSE,
    "everyday": _GENERATED | {"document_words": tuple, "notes": bool},
    "corpus": _PROSE,
    "hotpot_qa": {"setting": str, "ids": str, "num_distractors": int},
    "musique": {"ids": str, "num_distractors": int, "single_hop": bool},
}


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/evaluate.py", arg, SETS)
    name = arg or "biography"
    dataset, options, num_samples = SETS[name]
    options = {n: placeholder(t) for n, t in FURTHER.get(dataset, {}).items()} | options
    config = ConfigDict()
    config.model = "qwen2.5-coder-0.5b"
    config.dtype = "auto"
    # "19:23": these take layer 18's attention weights and cache no keys. All methods answer with
    # that model, full_recompute too; what it costs in F1 is told by an evaluation without.
    config.shared_layers = ""
    config.adapter = ""  # a folder or a name; empty: the model's own, else the primer
    # Of primed. Empty: the usual one; "biography:3": three documents of that data set's training
    # split (biography, wikipedia, everyday and sheets have one).
    config.primer = ""
    config.other_model = False  # True: though it was trained for another model of that width
    config.template = "chat"  # or "chat_reasoning": a sentence or two before each answer
    # Of the intervals' resampling. Data that are drawn have dataset.options.seed, and
    # rand_recompute a setting: "rand_recompute:ratio=0.3,seed=1".
    config.seed = 0

    config.dataset = ConfigDict({"name": dataset, "split": "test", "options": options})
    # True: for all methods, the document most like a question is read first, as launch.answer does.
    config.dataset.best_first = False
    config.num_samples = num_samples  # questions; 0: all
    # All are asked the same questions; full_recompute always comes first.
    config.methods = METHODS if name in COMPARED else FEW  # "name" or "name:field=value,…"
    # Of an answer; a template that reasons adds its own.
    config.new_tokens = LISTS if name == "ruler" else 32
    config.teacher = ""  # a folder for the teacher's targets, for many runs; empty: in the workdir

    # Timed apart from answering, alone and interleaved. Answers are padded to few sizes, which
    # spares compiling; what is timed is padded as little as a request.
    config.num_timed = 2  # examples; on a CPU they take as long as many answers
    config.runs = 3  # of each
    return config
