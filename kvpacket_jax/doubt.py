"""Which answers from packets are in doubt: for them the documents are read in full instead."""

from collections.abc import Sequence

from kvpacket_jax import similarity

# Unless another limit is asked for: answers with a less likely token are in doubt.
RECOMPUTE_BELOW = 0.3


def is_elsewhere(answer: str, documents: Sequence[str], question: str) -> bool:
    """Whether an answer's words stand in a document, but not in the one most like the question.

    Where packets mislead, the model is often sure of what it takes from the wrong one. Texts are
    compared as `similarity.words` has them, so of writing without blanks little is noticed; and
    nothing where no document has a word of the question.
    """
    said = similarity.words(answer)
    texts = [similarity.words(document) for document in documents]
    holding = [_spaced(said) in _spaced(text) for text in texts]
    if not said or not any(holding) or all(holding):
        return False
    asked = set(similarity.words(question))
    if not any(asked.intersection(text) for text in texts):
        return False
    return not holding[similarity.closest_to(documents, question)]


def is_in_doubt(confidence: float, elsewhere: bool, below: float) -> bool:
    """Whether a confidence (answer_text.confidence) is `below`, or the answer stands elsewhere.

    With a limit of 0 nothing is.
    """
    return confidence < below or (elsewhere and below > 0)


def reason(confidence: float, elsewhere: bool) -> str:
    """Why an answer is in doubt, in words."""
    if elsewhere:
        return "it stands in another document than the one most like the question"
    return f"its least likely token has a probability of {confidence:.2f}"


def _spaced(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
