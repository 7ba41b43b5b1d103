"""RULER's tasks beside the needles (Hsieh et al. 2024, arXiv 2404.06654), in chunks.

multi_query        one question for the numbers of several keys
variable_tracking  which variables have a value, through chains of assignments over the chunks
common_words       which words stand most often in a list of words

Each chunk is a document. The needles of one question each are niah's; question answering over
paragraphs is wikipedia, hotpot_qa and musique. Scores are not RULER's own: its prompts have worked
examples and begin the answer, and answers here end with their line, which questions ask for.
"""

import dataclasses
import itertools
import string

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import Example, Question
from kvpacket_jax.data.synthetic import niah, prose

VERSION = "1.2.0"  # part of every seed: raise it with any change of what is drawn
KINDS = ("multi_query", "variable_tracking", "common_words")
IN_A_LINE = " Answer in one line, with commas."
LETTERS = 5  # of a variable's name
WORD_TOKENS = 5  # of a word of the list with its number, about


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerConfig(generated.GeneratorConfig):
    """A range is a number or (least, most).

    Args:
      num_queries: keys that a question of multi_query asks for, of `num_needles` in the text.
      num_chains: chains of variables, each `num_hops` assignments after its value.
      num_common: words that stand `common` times in the list; all others stand `rare` times, or
        more where the words of a split do not fill `num_tokens`.
    """

    num_tokens: int | tuple[int, int] = 2000
    num_chunks: int | tuple[int, int] = 8
    kinds: tuple[str, ...] = KINDS
    num_needles: int = 8
    num_queries: int = 4
    num_chains: int = 2
    num_hops: int = 4
    num_common: int = 10
    common: int = 30
    rare: int = 3

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_tokens=(64, 1 << 20), num_chunks=(1, 1024))
        object.__setattr__(self, "kinds", generated.as_choices("kinds", self.kinds, KINDS))
        for name, (low, high) in {
            "num_needles": (1, 100),
            "num_queries": (1, self.num_needles),
            "num_chains": (1, 20),
            "num_hops": (1, 20),
            "num_common": (1, 20),
            "rare": (1, 1000),
            "common": (self.rare + 1, 1000),
        }.items():
            generated.as_range(name, getattr(self, name), low, high)
        least = WORD_TOKENS * (self.num_common * self.common + self.rare)
        if "common_words" in self.kinds and self.num_tokens[0] < least:
            raise ValueError(
                f"num_tokens={self.num_tokens[0]}: common_words needs {least:,} or more for a word "
                f"that is not common (num_common {self.num_common}, common {self.common}); give a "
                "smaller common, or leave it out of kinds."
            )


def generate(split: str, index: int, config: RulerConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    rng = generated.example_rng("ruler", VERSION, config, split, index)
    kind = rng.choice(config.kinds)
    documents, questions = _GENERATORS[kind](rng, split, config)
    name = f"ruler-{split}-{index}"
    return Example(name, documents, questions[: config.num_questions], config.preamble)


def _multi_query(rng, split: str, config: RulerConfig):
    keys = niah.draw_keys(rng, split, config.num_needles, share_words=0.5)
    values = dict(zip(keys, niah.draw_values(rng, split, len(keys)), strict=True))
    sentences = [niah.NEEDLES[False].format(key="-".join(k), value=v) for k, v in values.items()]
    rng.shuffle(sentences)
    documents = _hidden(rng, sentences, config)
    rng.shuffle(keys)
    questions = []
    for first in range(0, len(keys) - config.num_queries + 1, config.num_queries):
        asked = keys[first : first + config.num_queries]
        names, numbers = ["-".join(k) for k in asked], [str(values[k]) for k in asked]
        text = f"What are the special magic numbers for {_listed(names)}, in this order?"
        questions.append(_question(text, numbers, documents, "multi_query"))
    return documents, tuple(questions)


def _variable_tracking(rng, split: str, config: RulerConfig):
    length = config.num_hops + 1
    names = _names(rng, config.num_chains * length)
    chains = [names[i * length : (i + 1) * length] for i in range(config.num_chains)]
    values = niah.draw_values(rng, split, config.num_chains)
    lines = [
        [
            f"VAR {chain[0]} = {value}.",
            *(f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(chain)),
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    merged = []  # each chain in its order, the chains mixed
    while any(lines):
        merged.append(rng.choice([line for line in lines if line]).pop(0))
    documents = _hidden(rng, merged, config)
    questions = [
        _question(
            f"Which variables have the value {value}, in the order of their assignment?",
            chain,
            documents,
            "variable_tracking",
        )
        for chain, value in zip(chains, values, strict=True)
    ]
    return documents, tuple(questions)


def _common_words(rng, split: str, config: RulerConfig):
    adjectives, nouns = niah.key_words(split)
    pool = rng.sample([*adjectives, *nouns], len(adjectives) + len(nouns))
    common, others = pool[: config.num_common], pool[config.num_common :]
    size = rng.randint(*config.num_tokens) // WORD_TOKENS
    most = config.num_common * config.common + len(others) * config.rare
    more = max(1.0, size / most)  # a split has few words: in longer lists each stands more often
    often, seldom = round(config.common * more), round(config.rare * more)
    rare = others[: (size - config.num_common * often) // seldom]
    words = common * often + rare * seldom
    rng.shuffle(words)
    chunks = rng.randint(*config.num_chunks)
    size = -(-len(words) // chunks)
    numbered = [f"{i}. {word}" for i, word in enumerate(words, 1)]
    documents = tuple(" ".join(numbered[i : i + size]) for i in range(0, len(numbered), size))
    text = f"What are the {len(common)} most common words in the numbered list?"
    if len(common) == 1:
        text = "What is the most common word in the numbered list?"
    info = {"kind": "common_words", "documents": list(range(len(documents)))}
    question = Question(_in_a_line(text, common), (", ".join(sorted(common)),), info=info)
    return documents, (question,)


_GENERATORS = {
    "multi_query": _multi_query,
    "variable_tracking": _variable_tracking,
    "common_words": _common_words,
}


def _hidden(rng, sentences: list[str], config: RulerConfig) -> tuple[str, ...]:
    """Prose in chunks with the sentences in it, in their order."""
    chunks, tokens = rng.randint(*config.num_chunks), rng.randint(*config.num_tokens)
    places = sorted(rng.randrange(chunks) for _ in sentences)
    documents, used = [], set()
    for chunk in range(chunks):
        held = [s for s, place in zip(sentences, places, strict=True) if place == chunk]
        room = tokens / chunks - niah.NEEDLE_TOKENS * len(held)
        text = prose.paragraph(rng, int(room / niah.TOKENS_PER_WORD), used)
        for at, sentence in zip(
            sorted((rng.randint(0, len(text)) for _ in held), reverse=True),
            reversed(held),
            strict=True,
        ):
            text.insert(at, sentence)
        documents.append(" ".join(text))
    return tuple(documents)


def _question(text: str, answers: list[str], documents: tuple[str, ...], kind: str) -> Question:
    """A question whose answer is a list; RULER counts the items that are in the answer."""
    holding = [i for i, d in enumerate(documents) if any(a in d for a in answers)]
    info = {"kind": kind, "documents": holding}
    return Question(_in_a_line(text, answers), (", ".join(answers),), info=info)


def _in_a_line(text: str, answers: list[str]) -> str:
    return text + IN_A_LINE if len(answers) > 1 else text


def _names(rng, number: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < number:
        names["".join(rng.choices(string.ascii_uppercase, k=LETTERS))] = None
    return list(names)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Ruler(generated.GeneratedBuilder):
    """Several queries, variable tracking and common words in chunks."""

    VERSION = tfds.core.Version(VERSION)
    generate = staticmethod(generate)


def source(split: str, data_dir, **options) -> generated.ExampleSource:
    """Returns the examples of `split`; `options` are RulerConfig's."""
    return generated.open_generated(Ruler, RulerConfig, split, data_dir, **options)
