"""Measures an adapter's card: how near packets come to the full context, by kind of document.

Everything is answered in microbatches of fixed shapes, as in training: on a GPU a thousand
questions take seconds.
"""

import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kvpacket_jax.adapters import card
from kvpacket_jax.adapters.card import ADAPTER, BARE, PRIMER, Card, Row, Score
from kvpacket_jax.answer_text import confidence
from kvpacket_jax.doubt import RECOMPUTE_BELOW, is_elsewhere, is_in_doubt
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.generate import check_finite, stop_array
from kvpacket_jax.runtime import hosts, programs
from kvpacket_jax.runtime.progress import SILENT, Progress
from kvpacket_jax.train import step as step_lib
from kvpacket_jax.train import validation
from kvpacket_jax.train.batches import Microbatch, Teaching, token_lists
from kvpacket_jax.train.shapes import FITTING
from kvpacket_jax.train.validation import Validation, Variant, variants
from models import LanguageModel, identity, sharding


def ways_of(model: LanguageModel, adapter: Adapter, opening: bool) -> dict[str, Variant]:
    """The adapter, its primer alone, and bare packets; none is compressed.

    Those with an opening share one program where the adapter is a writer over a primer, as all do
    without: of a primer without a valid slot nothing is seen.
    """
    adapter = adapter._replace(distiller=None)  # which whole packets are built without
    bare = adapter_lib.empty(model.config.dim)
    parts = {ADAPTER: adapter, PRIMER: bare._replace(primer=adapter.primer), BARE: bare}
    ways = dict(zip(parts, variants(model, list(parts.values()), opening), strict=True))
    if (primer := ways[ADAPTER].primer) is not None:
        unseen = primer._replace(valid=jnp.zeros_like(primer.valid))
        ways[BARE] = ways[BARE]._replace(primer=unseen)
    # What is the same is answered once.
    if adapter.primer is None:
        ways[PRIMER] = ways[BARE]
    elif adapter.writer is None and not adapter.num_tokens:
        ways[PRIMER] = ways[ADAPTER]
    return ways


def write_measured(
    path: epath.PathLike,
    model: LanguageModel,
    adapter: Adapter,
    config: ConfigDict,
    progress: Progress = SILENT,
) -> Card:
    """Measures an adapter's card and writes it to `path`.

    What is measured so far lies in a file beside it: stopped, the same call goes on from there.

    Args:
      config: as configs/card.py has it.
      progress: is told of each kind, and of its microbatches.

    Raises:
      ValueError: as `measure` does; that file is damaged; or a card is there that was measured
        otherwise.
    """
    path = hosts.absolute(path)
    unfinished = path.with_name(f"{path.name}.unfinished")
    measured_by = identity.digest(
        {
            "config": config.to_dict(),
            "dtype": str(model.dtype),
            "recompute_below": RECOMPUTE_BELOW,
            "fit": FITTING,
        }
    )
    made = Card(
        model.name,
        [],
        measured_by,
        config.template,
        RECOMPUTE_BELOW,
        model.fingerprint,
        config.opening,
        elsewhere=True,
    )
    there = card.read(path, adapter)
    if there and there.config != measured_by:
        raise ValueError(
            f"{path} is a card of this adapter, measured with other settings or by another "
            "version: give --output=FILE, or remove it."
        )
    before = card.read(unfinished, adapter)
    if before and before._replace(rows=[]) == made:
        made = before
        progress.say(f"Measured before: {', '.join(row.kind for row in made.rows)}")
    for row in measure(model, adapter, config, progress, {row.kind for row in made.rows}):
        made.rows.append(row)
        card.write(unfinished, made, adapter, str(model.dtype))
    card.write(path, made, adapter, str(model.dtype))
    unfinished.unlink(missing_ok=True)
    return made


def measure(
    model: LanguageModel,
    adapter: Adapter,
    config: ConfigDict,
    progress: Progress = SILENT,
    known: Collection[str] = (),
) -> Iterator[Row]:
    """The rows of a card, one after the other, but for the `known` kinds'.

    Raises ValueError where logits, with the adapter or without, are not finite, for a template that
    reasons where a kind has no room for it, and for a kind of which no answer has room.
    """
    validate = validation.of_config(model, config, adapter.num_tokens)
    ways = ways_of(model, adapter, config.opening)
    sets = {kind: number for kind, number in validate.sets.items() if kind not in known}
    programs.side_by_side(
        functools.partial(_compare, validate, kind, 0, ways)
        for kind in {validate.teaching.shapes[kind]: kind for kind in sets}.values()
    )
    for kind, number in sets.items():
        progress.say(f"{kind}: {number} sets of documents")
        asked: list[_Asked | None] = []
        firsts = range(0, number, config.batch_size)
        for first in progress.track(firsts, "microbatches"):
            for each in _compare(validate, kind, first, ways)[: number - first]:
                asked += each
        questions = [one for one in asked if one is not None]
        validation.check_any(kind, len(questions))
        yield _row(kind, questions, len(asked) - len(questions))


class _Asked(NamedTuple):
    """One question: the full context's answer, and what each variant made of it."""

    full_f1: float
    right: bool
    documents: int
    tokens: int  # of the longest document
    f1: dict[str, float]
    kl: dict[str, float]
    same: dict[str, bool]
    doubted: dict[str, bool]  # by the limit of doubt.RECOMPUTE_BELOW


def _compare(
    validate: Validation, kind: str, first: int, ways: dict[str, Variant]
) -> list[list[_Asked | None]]:
    """The questions of each example of one microbatch; None: its answer did not fit the arrays."""
    teaching, microbatch = validate.teaching, validate.teach(kind, first)
    scores, said = _answers(teaching, kind, microbatch, ways)
    examples = microbatch.examples
    ids = {
        name: token_lists(examples, tokens, lengths) for name, (tokens, lengths, _) in said.items()
    }
    texts = {name: teaching.texts(examples, own) for name, own in ids.items()}
    decode, template = teaching.model.tokenizer.decode, teaching.template
    documents = [[decode(tokens) for tokens in e.encoded.documents] for e in examples]

    def doubted(name: str, e: int, q: int, same: bool) -> bool:
        """Whether an answer is in doubt, the teacher's own tokens where it is the same."""
        tokens = (microbatch.answer_ids if same else ids[name])[e][q]
        known = scores[name]["probabilities"] if same else said[name][2]
        known, question = known[e, q, : len(tokens)].tolist(), examples[e].questions[q]
        text = (microbatch.answers if same else texts[name])[e][q]
        elsewhere = is_elsewhere(text, documents[e], question.text)
        confident = confidence(decode, template, question, tokens, known)
        return is_in_doubt(confident, elsewhere, RECOMPUTE_BELOW)

    compared = []
    for e, example in enumerate(examples):
        asked, lengths = [], [len(ids) for ids in example.encoded.documents]
        for q, question in enumerate(example.questions):
            if not scores[ADAPTER]["tokens"][e, q]:
                asked.append(None)
                continue
            full = microbatch.answers[e][q]
            f1 = functools.partial(metrics.f1, golds=question.answers or (full,))  # as in right
            same = {name: bool(scores[name]["same"][e, q]) for name in ways}
            asked.append(
                _Asked(
                    f1(full),
                    bool(microbatch.right[e, q]),
                    len(lengths),
                    max(lengths),
                    {name: f1(full if same[name] else texts[name][e][q]) for name in ways},
                    {name: float(scores[name]["kl"][e, q]) for name in ways},
                    same,
                    {name: doubted(name, e, q, same[name]) for name in ways},
                )
            )
        compared.append(asked)
    return compared


def _answers(
    teaching: Teaching, kind: str, microbatch: Microbatch, ways: dict[str, Variant]
) -> tuple[dict, dict]:
    """The arrays of step.compare_microbatch for each of the ways, on the host."""
    scores, said = {}, {}
    for name, way in ways.items():
        if known := next((n for n in scores if ways[n] is way), None):
            scores[name], said[name] = scores[known], said[known]
            continue
        adapter, primer, opening = way
        scores[name], said[name] = _score_and_answer(
            teaching.model.module,
            teaching.model.params,
            adapter,
            primer,
            microbatch.batch,
            microbatch.hidden,
            microbatch.questions,
            microbatch.question_lengths,
            stop_array(teaching.model, None),
            new_tokens=teaching.shapes[kind].new_tokens,
            opening=opening,
        )
    scores, said = sharding.fetch((scores, said))
    for tokens, _, _ in said.values():
        check_finite(teaching.model, tokens)
    return scores, said


_score_and_answer = functools.partial(jax.jit, static_argnames=("module", "new_tokens", "opening"))(
    step_lib.compare_microbatch
)


def _row(kind: str, questions: list[_Asked], left_out: int) -> Row:
    full = float(np.mean([q.full_f1 for q in questions]))
    right = [q for q in questions if q.right]

    def score(name: str) -> Score:
        f1 = float(np.mean([q.f1[name] for q in questions]))
        return Score(
            f1,
            f1 / max(full, 1e-9),
            float(np.mean([q.same[name] for q in questions])),
            float(np.mean([q.same[name] for q in right])) if right else None,
            float(np.mean([q.kl[name] for q in questions])),
            float(np.mean([q.doubted[name] for q in questions])),
            float(np.mean([q.same[name] or q.doubted[name] for q in right])) if right else None,
        )

    scores = {name: score(name) for name in (ADAPTER, PRIMER, BARE)}
    documents, tokens = (max(getattr(q, n) for q in questions) for n in ("documents", "tokens"))
    return Row(kind, documents, tokens, len(questions), full, scores, len(right), left_out)
