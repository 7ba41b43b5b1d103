"""Short lives of fictional people, one a document, and questions about their six attributes."""

import dataclasses
import functools
import itertools

import tensorflow_datasets as tfds

from kvpacket_jax.data import generated
from kvpacket_jax.data.examples import FORMS, Example, Question
from kvpacket_jax.data.synthetic import biography_words as words

VERSION = "1.2.0"  # part of every seed: raise it with any change of what is drawn
MAX_DOCUMENTS = 20  # the smallest pool of a split must hold a value for each

# `document_words` and the tokens it gives on average with Qwen2.5 and SmolLM2, nearly 1.5 a word.
DOCUMENT = (60, 80)  # 100 tokens, 76 to 133
LONG_DOCUMENT = (100, 120)  # 145 tokens
SHORT_DOCUMENT = 40  # 57 tokens: the six facts in their shortest wordings, no more


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiographyConfig(generated.GeneratorConfig):
    """Ranges are a number or (least, most)."""

    num_documents: int | tuple[int, int] = (1, 10)
    document_words: int | tuple[int, int] = DOCUMENT
    forms: tuple[str, ...] = FORMS
    shared_names: bool = False  # people of a set share first names and surnames, never both
    two_hop: bool = False  # half of the questions name their person by another fact
    one_fact: bool = False  # a document tells one of the six facts: a note of a line

    def __post_init__(self):
        super().__post_init__()
        self.make_ranges(num_documents=(1, MAX_DOCUMENTS), document_words=(1, 160))
        object.__setattr__(self, "forms", generated.as_choices("forms", self.forms, FORMS))
        if self.one_fact and self.two_hop:
            raise ValueError("two_hop names a person by a second fact, and one_fact tells one.")


@dataclasses.dataclass(frozen=True)
class Person:
    first: str
    last: str
    female: bool
    facts: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


@functools.cache
def surnames(split: str) -> tuple[str, ...]:
    """Returns the surnames of `split`: no two splits share one, so they share no person."""
    return generated.pool_of(words.SURNAMES, split)


@functools.cache
def values(split: str, attribute: str) -> tuple[str, ...]:
    """Returns the values that `attribute` can have in `split` and in no other."""
    return generated.pool_of(words.VALUES[attribute](), split)


def generate(split: str, index: int, config: BiographyConfig) -> Example:
    """Returns example `index` of `split`. Raises ValueError for an unknown split."""
    rng = generated.example_rng("biography", VERSION, config, split, index)
    number = rng.randint(*config.num_documents)
    for _ in range(1000):
        people = _draw_people(rng, split, number, config.shared_names)
        if config.one_fact:
            people = [_with_one_fact(rng, p) for p in people]
        documents = tuple(_write(rng, p, rng.randint(*config.document_words)) for p in people)
        if _unambiguous(people, documents):
            break
    else:
        raise RuntimeError(
            f"no {number} people of {split!r} whose values are apart: widen the pools"
        )
    pairs = [(i, attribute) for i, person in enumerate(people) for attribute in person.facts]
    chosen = rng.sample(pairs, min(config.num_questions, len(pairs)))
    questions = tuple(
        _ask(rng, people[i], i, attribute, rng.choice(config.forms), config.two_hop)
        for i, attribute in chosen
    )
    return Example(f"biography-{split}-{index}", documents, questions, config.preamble)


def _draw_people(rng, split, number, shared_names: bool) -> list[Person]:
    # Without repetition in a set: a distractor has another value for every attribute.
    drawn = {a: rng.sample(values(split, a), number) for a in words.VALUES}
    people = []
    for i, (first, last) in enumerate(_draw_names(rng, split, number, shared_names)):
        female = first in words.FEMALE_NAMES
        people.append(Person(first, last, female, {a: drawn[a][i] for a in words.VALUES}))
    return people


def _with_one_fact(rng, person: Person) -> Person:
    attribute = rng.choice(list(person.facts))
    return dataclasses.replace(person, facts={attribute: person.facts[attribute]})


def _draw_names(rng, split, number, shared: bool) -> list[tuple[str, str]]:
    """First names and surnames; shared ones are half as many, and no two people have both."""
    firsts, lasts = words.FEMALE_NAMES + words.MALE_NAMES, surnames(split)
    if shared:
        few = number // 2 + 1
        return rng.sample(
            list(itertools.product(rng.sample(firsts, few), rng.sample(lasts, few))), number
        )
    return list(zip(rng.sample(firsts, number), rng.sample(lasts, number), strict=True))


def _write(rng, person: Person, num_words: int) -> str:
    short = num_words <= SHORT_DOCUMENT
    phrasings = {a: p[:1] if short else p for a, p in words.PHRASINGS.items()}
    facts = [(rng.choice(phrasings[a]), v) for a, v in person.facts.items()]
    rng.shuffle(facts)
    # Each fact names its person, or a small model loses who "she" was, even in the full context:
    # F1 was .50 with pronouns. The shortest documents have no room for that.
    sentences = [
        _render(rng, person, s, v, "pronoun" if short and i else "name")
        for i, (s, v) in enumerate(facts)
    ]
    room = num_words - sum(len(s.split()) for s in sentences)
    for filler in rng.sample(words.FILLERS, len(words.FILLERS)):
        sentence = _render(rng, person, filler, "", "any")
        if len(sentence.split()) <= room:
            room -= len(sentence.split())
            sentences.insert(rng.randint(1, len(sentences)), sentence)
    return " ".join(sentences)


def _render(rng, person: Person, sentence: str, value: str, call: str) -> str:
    he, his = ("she", "her") if person.female else ("he", "his")
    calls = {
        "name": (person.name,),
        "pronoun": (he,),
        "any": (he, he, person.last, person.name),
    }
    called = rng.choice(calls[call])
    owner, him = (
        (his, "her" if person.female else "him") if called == he else (f"{called}'s", called)
    )
    text = sentence.format(
        s=called, owner=owner, he=he, his=his, him=him, v=value, a=_with_article(value)
    )
    return text[0].upper() + text[1:]


def _with_article(value: str) -> str:
    return f"an {value}" if value[:1].lower() in tuple("aeiou") else f"a {value}"


def _unambiguous(people, documents) -> bool:
    """Each value stands once in its own document and in no other."""
    texts = [d.lower() for d in documents]
    return all(
        text.count(value.lower()) == (i == j)
        for i, person in enumerate(people)
        for value in person.facts.values()
        for j, text in enumerate(texts)
    )


def _ask(rng, person: Person, document: int, attribute: str, form: str, two_hop: bool) -> Question:
    answer, info = person.facts[attribute], {"documents": [document], "kind": attribute}
    text = rng.choice(words.ASKED[form][attribute])
    called = person.name
    if two_hop and rng.random() < 0.5:
        other = rng.choice([a for a in words.VALUES if a != attribute])
        value = person.facts[other]
        called = words.DESCRIBED[other].format(v=value, a=_with_article(value))
        info["hops"] = 2
    text = text.format(
        n=called,
        his="her" if person.female else "his",
        article=_with_article(answer).split()[0],
    )
    return Question(text[0].upper() + text[1:], (answer,), form, info)


class Biography(generated.GeneratedBuilder):
    """Short biographies of fictional people and questions about their attributes."""

    VERSION = tfds.core.Version(VERSION)
    generate = staticmethod(generate)


def source(split: str, data_dir, **options) -> generated.ExampleSource:
    """Returns the examples of `split`; `options` are BiographyConfig's."""
    return generated.open_generated(Biography, BiographyConfig, split, data_dir, **options)
