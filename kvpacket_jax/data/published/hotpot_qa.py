"""HotpotQA (Yang et al. 2018, arXiv 1809.09600, CC BY-SA 4.0): questions over two paragraphs.

"distractor" has the two gold paragraphs among eight others; "fullwiki" ten that a retriever found,
the gold ones among them or not. Kinds of question: "bridge" and "comparison", "bridge, incomplete"
and "comparison, incomplete" where a gold paragraph is not there.
"""

import json
import os
import pathlib
from collections.abc import Iterator

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import Example
from kvpacket_jax.data.published import multi_hop
from kvpacket_jax.data.published.multi_hop import Dataset, MultiHopConfig, Official, Paragraph

URL = "http://curtis.ml.cmu.edu/datasets/hotpot/"
SETTINGS = ("distractor", "fullwiki")
BLOCK = 1 << 20  # characters read at once

TRAIN = Official(
    ("*train*.json",),
    f"{URL}hotpot_train_v1.1.json",
    "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
)
DEV = {
    "distractor": Official(
        ("*dev_distractor*.json",),
        f"{URL}hotpot_dev_distractor_v1.json",
        "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
    ),
    "fullwiki": Official(
        ("*dev_fullwiki*.json",),
        f"{URL}hotpot_dev_fullwiki_v1.json",
        "2f1f3e594a3066a3084cc57950ca2713c24712adaad03af6ccce18d1846d5618",
    ),
}


def source(
    split: str, data_dir: str | os.PathLike, setting: str = "distractor", **options
) -> multi_hop.Source:
    """Returns the examples of `split`, one question each; `options` are MultiHopConfig's.

    The training split has one setting, distractor. Raises as multi_hop.open_published.
    """
    generated.check_options("hotpot_qa", MultiHopConfig, options)
    generated.as_choices("setting", setting, SETTINGS)
    dataset = Dataset(
        "hotpot_qa",
        "1.0.0",
        "https://hotpotqa.github.io",
        "CC BY-SA 4.0",
        {"train": TRAIN, "dev": DEV[setting]},
        read,
    )
    return multi_hop.open_published(dataset, split, data_dir, MultiHopConfig(**options))


def read(path: pathlib.Path) -> Iterator[Example | ValueError]:
    """The examples of an official file, or what is wrong with a record."""
    for record in _array(path):
        try:
            yield _example(record)
        except (KeyError, TypeError, ValueError) as error:
            yield ValueError(
                f"it is no record of HotpotQA ({type(error).__name__}: {error}), which has _id, "
                "question, answer, type, supporting_facts and context"
            )


def _example(record: dict) -> Example:
    gold = {title for title, _ in record["supporting_facts"]}
    paragraphs = [
        # Sentences begin with their own blanks; some files have a paragraph as one text.
        Paragraph(title, text if isinstance(text, str) else "".join(text), title in gold)
        for title, text in record["context"]
    ]
    complete = gold <= {p.title for p in paragraphs}
    info = {"kind": record["type"] if complete else f"{record['type']}, incomplete", "hops": 2}
    return multi_hop.example(
        record["_id"], paragraphs, record["question"], (record["answer"],), info
    )


def _array(path: pathlib.Path) -> Iterator[dict]:
    """The items of a JSON array, one in memory at a time: the training file has half a gigabyte."""
    decoder, text, at = json.JSONDecoder(), "", 0
    with path.open(encoding="utf-8") as file:
        if file.read(1) != "[":
            raise ValueError(f"{path} is not HotpotQA's: it does not begin with [.")
        while True:
            text = text[at:].lstrip(", \n\r\t")
            at = 0
            try:
                item, at = decoder.raw_decode(text)
            except (json.JSONDecodeError, RecursionError) as error:
                more = file.read(BLOCK)
                if text.startswith("]") and not more.strip():
                    return
                if not more:
                    raise ValueError(f"{path} is damaged or cut short: {error}.") from error
                text += more
            else:
                yield item
