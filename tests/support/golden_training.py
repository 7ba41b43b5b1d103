"""The published trainer's run: its samples, and microbatches of them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import models
from kvpacket_jax import teacher
from kvpacket_jax.data import EncodedExample
from kvpacket_jax.methods.base import store_preamble
from kvpacket_jax.methods.full_recompute import read_documents
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.train import loss as loss_lib
from kvpacket_jax.train.shapes import Fitted, Shape


class Sample(NamedTuple):
    """A published sample, with the teacher's tokens and states."""

    example: EncodedExample
    answer: list[int]
    hidden: np.ndarray  # float32 [N, D]


class Golden(NamedTuple):
    """The published run of one family."""

    model: models.LanguageModel
    arrays: dict[str, np.ndarray]
    samples: dict[str, Sample]
    adapter: Adapter
    shape: Shape  # of both samples, so that their steps are one program


def read_sample(model, arrays, name: str) -> Sample:
    """The teacher's states are ours, and give the published logits."""
    documents = [
        arrays[f"{name}/doc{i}_ids"].tolist() for i in range(10) if f"{name}/doc{i}_ids" in arrays
    ]
    query, answer = (arrays[f"{name}/{k}"].tolist() for k in ("query_ids", "teacher_tokens"))
    example = EncodedExample(arrays[f"{name}/preamble_ids"].tolist(), documents, [query])
    context, start = read_documents(model, store_preamble(model, example.preamble), documents)
    hidden = teacher.hidden_states(model, context, start, [query], [answer])
    logits = model.module.bind({"params": model.params}).logits(jnp.asarray(hidden)[None])[0]
    np.testing.assert_allclose(logits, arrays[f"{name}/teacher_logits"], atol=1e-3)
    return Sample(example, answer, hidden)


def shape_of(samples) -> Shape:
    examples = [s.example for s in samples]
    return Shape(
        preamble=max(len(e.preamble) for e in examples),
        documents=max(len(e.documents) for e in examples),
        tokens=max(len(d) for e in examples for d in e.documents),
        questions=1,
        row=max(len(s.example.questions[0]) + len(s.answer) for s in samples),
        new_tokens=max(len(s.answer) for s in samples),
        answers=max(len(s.answer) for s in samples),
    )


def pack(shape: Shape, *samples: Sample) -> tuple[loss_lib.Batch, np.ndarray]:
    """A microbatch, and the teacher's states `[E, Q, N, D]`."""
    fitted = [Fitted("", (), s.example) for s in samples]
    batch = loss_lib.pack(fitted, [[s.answer] for s in samples], [[1.0]] * len(samples), shape)
    hidden = np.zeros((len(samples), 1, shape.new_tokens, samples[0].hidden.shape[-1]), np.float32)
    for e, sample in enumerate(samples):
        hidden[e, 0, : len(sample.answer)] = sample.hidden
    return batch, hidden
