"""What an adapter's card covers: kinds, numbers and lengths of documents, from test splits.

configs/card.py        for a GPU; two cores take hours
configs/card.py:cpu    a quarter of the sets, but all of own_docs and Wikipedia; shares are rough
configs/card.py:small  two sets of each kind, to see that it runs

The document most like its questions comes first, as launch.answer reads them (it keeps the order
given for bare packets, which here have that order too). Sizes of an entry are as in
configs/train.py; `sets` are of documents in one order, with up to `questions`: of the same
documents there may be one for each document that is asked about.
"""

from ml_collections import ConfigDict

from configs import arguments
from configs.train import FIVE, LETTERS, LINES, LIVES, NOTES, PAGES, kind

QUESTIONS = 8  # about the same document first, at most


def get_config(arg: str | None = None) -> ConfigDict:
    arguments.check("configs/card.py", arg, ["cpu", "small"])
    config = ConfigDict()
    config.model = "qwen2.5-coder-0.5b"
    config.dtype = "auto"
    config.shared_layers = ""  # as in configs/train.py
    config.template = "chat"
    config.opening = True  # as in configs/train.py
    config.other_model = False  # as in configs/train.py
    config.scan_layers = "auto"  # as in configs/train.py
    config.remat = "auto"
    config.batch_size = 1  # sets of documents at once; 8 fill a GPU
    life, prose = dict(num_questions=120), dict(num_questions=30, num_documents=5)
    needles = dict(num_tokens=2000, num_chunks=8, num_needles=8, kinds=("multi_key",))

    def test(name: str, sets: int, sizes: dict, **options) -> ConfigDict:
        # Room for all answers, but for long ones to the longest questions.
        sizes = sizes | {
            "row": sizes["row"] + sizes["new_tokens"] // 2,
            "questions": QUESTIONS,
            "answers": QUESTIONS * sizes["new_tokens"],
        }
        few = sets if name in ("own_docs", "wikipedia") else -(-sets // 4)
        number = {"": sets, "cpu": few, "small": 2}[arg or ""]
        return kind(name, number, sizes, "test", **options)

    config.validation = ConfigDict(
        {
            "five lives": test("biography", 160, FIVE, num_documents=5, **life),
            "five short lives": test(
                "biography", 50, FIVE, num_documents=5, document_words=40, **life
            ),
            "ten lives": test("biography", 50, LIVES, num_documents=10, **life),
            "twenty lives": test("biography", 50, LIVES, num_documents=20, **life),
            "needles": test("niah", 80, PAGES, num_questions=8, **needles),
            "wikipedia": test("wikipedia", 70, NOTES, document_words=(50, 90), **prose),
            "wikipedia, long": test("wikipedia", 35, PAGES, document_words=(95, 190), **prose),
            "everyday": test("everyday", 28, LETTERS, num_questions=30),
            "own_docs": test("own_docs", 60, LETTERS),
            "own_notes": test("own_docs", 60, LINES, notes=True),
        }
    )
    return config
