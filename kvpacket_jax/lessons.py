"""Lessons kept on disk: the teacher runs once for an example, whatever happens to the training."""

from collections.abc import Sequence

import numpy as np
import safetensors
from etils import epath
from safetensors import numpy as safetensors_numpy

from kvpacket_jax.data import EncodedExample, Example, Template, encode_example
from kvpacket_jax.distill import Lesson, teach
from kvpacket_jax.generate import stop_array
from models import LanguageModel, identity
from models.files import write_whole

FORMAT = 1


def lesson(
    model: LanguageModel,
    example: EncodedExample,
    new_tokens: int,
    folder: epath.Path,
    stop_ids: Sequence[int] | None = None,
) -> Lesson:
    """The teacher's lesson, read from `folder` or made and written there.

    The file is named by all that made it, so a restart or another run with the same model and data
    finds it. A file that cannot be read is made again.
    """
    key = identity.digest(
        {
            "format": FORMAT,
            "model": model.fingerprint,
            "dtype": str(model.dtype),
            "scan_layers": model.config.scan_layers,
            "preamble": example.preamble,
            "documents": example.documents,
            "questions": example.questions,
            "new_tokens": new_tokens,
            "stop_ids": stop_array(model, stop_ids).tolist(),
        }
    )
    path = folder / f"{key}.safetensors"
    try:
        arrays = safetensors_numpy.load(path.read_bytes())
        return Lesson(example, _split(arrays["tokens"], arrays["lengths"]), arrays["hidden"])
    except (FileNotFoundError, safetensors.SafetensorError, KeyError):
        pass
    made = teach(model, example, new_tokens, stop_ids)
    arrays = {
        "tokens": np.array([t for a in made.answers for t in a], np.int32),
        "lengths": np.array([len(a) for a in made.answers], np.int32),
        "hidden": made.hidden,
    }
    write_whole(path, safetensors_numpy.save(arrays))
    return made


def encode(
    model: LanguageModel, template: Template, example: Example, soft_tokens: int, new_tokens: int
) -> EncodedExample:
    """The example as token ids; ValueError, which names it, if the model's context is too short.

    Args:
      soft_tokens: around each document, h + t.
      new_tokens: the longest answer.
    """
    encoded = encode_example(model.tokenizer, template, example)
    longest = max(map(len, encoded.questions)) + new_tokens
    try:
        model.check_length(encoded.context_length(soft_tokens) + longest)
    except ValueError as error:
        raise ValueError(f"Example {example.id}: {error}") from error
    return encoded


def _split(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
