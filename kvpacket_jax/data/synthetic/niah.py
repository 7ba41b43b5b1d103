"""Needles in prose, as in RULER: numbers hidden under keys in a text cut into chunks.

Each chunk is a document. `kind` is one of KINDS: one needle; several, each under its own key;
several keys with several numbers each.
"""

import dataclasses
import functools

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import FORMS, Example, Question
from kvpacket_jax.data.synthetic import prose

VERSION = "1.0.0"  # part of every seed: raise it with any change of what is drawn
KINDS = ("single", "multi_key", "multi_value")

# Lengths are planned in tokens but drawn in words: the prose's, measured with Qwen2.5 and
# SmolLM2, and a needle's, whose digits most tokenizers take one by one. Both are approximate.
TOKENS_PER_WORD = 1.07
NEEDLE_TOKENS = 20

_ADJECTIVES = """amber ancient barren blunt brave bright brisk broken calm careful clever coarse
copper crimson curious damp dapper daring dim distant dusty eager early elegant empty faint
fancy fearless fierce final fragile frozen gentle giant gilded graceful grand greedy grumpy
hasty hidden hollow honest humble icy idle jolly keen lavish lazy lively lonely loyal lucky mellow
merry mighty misty modest muddy narrow neat nimble noble odd olive pale patient placid plain
polite proud purple quaint quick quiet rapid rare rough royal rustic scarlet serene shallow sharp
shiny silent sleepy slender smooth sober solid spicy stable steady steep stern subtle sunny sweet
tall tender tidy tiny tough tranquil urban velvet violet vivid warm wicked wild wise witty young
zealous"""

_NOUNS = """acorn anchor anvil apron arrow badger ballad barrel basket beacon bottle branch bridge
bucket button cabin camel candle canyon carpet castle cellar circle cliff cloud clover comet
compass coral cradle crystal curtain desert dragon drum eagle engine falcon feather fiddle forest
fountain garden glacier goblet hammer harbor hedge helmet herald heron hill island ivory jacket
jungle kettle kitten ladder lagoon lantern lemon lion lizard magnet maple marble meadow mirror
monkey mountain needle nutmeg ocean orchard otter oven oyster paddle palace parrot peach pebble
pepper piano pillow pirate planet pocket pond prairie puzzle quarry rabbit raven ribbon river
rocket saddle sailor shadow shovel spider spoon squirrel stone stream sword temple thicket thunder
tiger tower tunnel turnip valley violin wagon walnut whale window winter zebra"""

NEEDLES = {
    False: "The special magic number for {key} is {value}.",
    True: "One of the special magic numbers for {key} is {value}.",
}

_ASKED = {  # (several values, form)
    (False, "question"): "What is the special magic number for {key}?",
    (False, "completion"): "The special magic number for {key} is",
    (True, "question"): "What are all the special magic numbers for {key}, in order?",
    (True, "completion"): "The special magic numbers for {key}, in order, are",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NiahConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most).

    `num_needles` is the number of needle sentences ("single" has one; "multi_value" shares
    them out in keys of `num_values`, at least one key). `share_words` is how often a key takes
    one of its two words from another key of the same text: those are the ones confused.
    """

    num_tokens: int | tuple[int, int] = (512, 1024)
    num_chunks: int | tuple[int, int] = 8
    num_needles: int | tuple[int, int] = 8
    num_values: int | tuple[int, int] = (2, 4)
    kinds: tuple[str, ...] = KINDS
    forms: tuple[str, ...] = FORMS
    share_words: float = 0.5
    tokens_per_word: float = TOKENS_PER_WORD

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(
            num_tokens=(64, 1 << 20), num_chunks=(1, 1024), num_needles=(1, 100), num_values=(2, 10)
        )
        for name, known in {"kinds": KINDS, "forms": FORMS}.items():
            chosen = generated.as_choices(name, getattr(self, name), known)
            object.__setattr__(self, name, chosen)
        if not 0.5 <= self.tokens_per_word <= 10 or not 0 <= self.share_words <= 1:
            raise ValueError(
                f"tokens_per_word={self.tokens_per_word!r} must be from 0.5 to 10, "
                f"share_words={self.share_words!r} from 0 to 1"
            )


@functools.cache
def key_words(split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the adjectives and the nouns of the keys of `split`, and of no other split."""
    return tuple(generated.pool_of(pool.split(), split) for pool in (_ADJECTIVES, _NOUNS))


def split_of_value(value: int) -> str:
    """Returns the split that a number belongs to; nothing in its digits gives it away."""
    rest = value % 7
    return "train" if rest < 5 else "validation" if rest == 5 else "test"


def generate(split: str, index: int, config: NiahConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    rng = generated.example_rng("niah", VERSION, config, split, index)
    kind = rng.choice(config.kinds)
    num_needles = rng.randint(*config.num_needles) if kind != "single" else 1
    num_values = rng.randint(*config.num_values) if kind == "multi_value" else 1
    num_chunks = rng.randint(*config.num_chunks)
    num_tokens = rng.randint(*config.num_tokens)

    keys = draw_keys(rng, split, max(1, num_needles // num_values), config.share_words)
    values = iter(draw_values(rng, split, len(keys) * num_values))
    needles = [(key, next(values)) for key in keys for _ in range(num_values)]
    chunks = [[] for _ in range(num_chunks)]
    for key, value in needles:
        chunks[rng.randrange(num_chunks)].append(
            NEEDLES[num_values > 1].format(key="-".join(key), value=value)
        )

    documents, used = [], set()
    for held in chunks:
        room = num_tokens / num_chunks - NEEDLE_TOKENS * len(held)
        sentences = prose.paragraph(rng, int(room / config.tokens_per_word), used)
        for needle in held:
            sentences.insert(rng.randint(0, len(sentences)), needle)
        documents.append(" ".join(sentences))

    chosen = rng.sample(keys, min(config.num_questions, len(keys)))
    questions = tuple(
        _ask(key, keys, needles, documents, kind, rng.choice(config.forms)) for key in chosen
    )
    return Example(f"niah-{split}-{index}", tuple(documents), questions, config.preamble)


def draw_keys(rng, split, number, share_words) -> list[tuple[str, str]]:
    adjectives, nouns = key_words(split)
    keys = []
    while len(keys) < number:
        # A word of its own while there are any: chance alone would make many keys share.
        adjective = rng.choice(
            [a for a in adjectives if a not in {k[0] for k in keys}] or adjectives
        )
        noun = rng.choice([n for n in nouns if n not in {k[1] for k in keys}] or nouns)
        if keys and rng.random() < share_words:
            old = rng.choice(keys)
            adjective, noun = rng.choice(((old[0], noun), (adjective, old[1])))
        if (adjective, noun) not in keys:
            keys.append((adjective, noun))
    return keys


def draw_values(rng, split, number) -> list[int]:
    values = []
    while len(values) < number:
        value = rng.randint(1_000_000, 9_999_999)
        if split_of_value(value) == split and value not in values:
            values.append(value)
    return values


def _ask(key, keys, needles, documents, kind, form) -> Question:
    name = "-".join(key)
    values = [str(value) for k, value in needles if k == key]
    places = sorted((i, d.index(v), v) for v in values for i, d in enumerate(documents) if v in d)
    several = kind == "multi_value"
    return Question(
        _ASKED[several, form].format(key=name),
        (", ".join(v for _, _, v in places),),
        form,
        {
            "documents": [i for i, _, _ in places],
            "kind": kind,
            "shares_word": any(k != key and (k[0] == key[0] or k[1] == key[1]) for k in keys),
        },
    )


class Niah(generated.GeneratedBuilder):
    """Needles in prose cut into chunks, and questions about them."""

    VERSION = tfds.core.Version(VERSION)
    generate = staticmethod(generate)


def source(split: str, data_dir, **options) -> generated.ExampleSource:
    """Returns the examples of `split`; `options` are NiahConfig's."""
    return generated.open_generated(Niah, NiahConfig, split, data_dir, **options)
