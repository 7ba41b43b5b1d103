"""What a run leaves: answers in rows.jsonl, and all that they depend on in run.json."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from kvpacket_jax import doubt
from kvpacket_jax.data import Example
from kvpacket_jax.evaluate import metrics
from kvpacket_jax.evaluate.answers import Answer
from kvpacket_jax.runtime import resume, sealed
from models.disk.files import append_line, write_whole
from models.identity import digest


def spec_of(row: Mapping) -> str:
    """A row's method with its setting, as a config's `methods` spell it."""
    return ":".join(filter(None, (row["method"], row["setting"])))


def answer_rows(
    spec: str,
    example: Example,
    answers: Sequence[Answer],
    said: Sequence[Answer],
    dataset: str = "",
) -> list[dict]:
    """The rows of one method and one example, scored.

    Args:
      said: full_recompute's answers; they are right where the data set has no right answer.
      dataset: its name; one of metrics.PUBLISHED adds its authors' own figure.
    """
    name, published = metrics.PUBLISHED.get(dataset, ("", None))
    method, _, setting = spec.partition(":")
    documents = digest(sorted(example.documents))[:16]
    golds = [q.answers or (full.text,) for q, full in zip(example.questions, said, strict=True)]
    return [
        {
            "example": example.id,
            "documents": documents,
            "question": i,
            **({"id": question.info["id"]} if "id" in question.info else {}),
            "method": method,
            "setting": setting,
            "form": question.form,
            "kind": question.info.get("kind", ""),
            "asked": question.text,
            "answer": answer.text,
            "place": _place(
                answer.text,
                gold,
                example,
                None if _is_list(gold, name) else question.info.get("documents"),
            ),
            "expected": list(gold),
            "f1": metrics.f1(answer.text, gold),
            "exact_match": _is_right(answer.text, gold, name),
            "same": answer.same,
            "kl": float(answer.kl[0]),
            "kl_answer": float(answer.kl.sum()),
            "answer_tokens": len(answer.kl),
            "confidence": answer.confidence,
            "elsewhere": doubt.is_elsewhere(answer.text, example.documents, question.text),
            **({name: published(answer.text, gold)} if published else {}),
            **(answer.picked._asdict() if answer.picked else {}),
        }
        for i, (question, answer, gold) in enumerate(
            zip(example.questions, answers, golds, strict=True)
        )
    ]


def _is_list(gold: Sequence[str], figure: str) -> bool:
    """Whether what is right is a list of items, and not one of several answers."""
    return figure == metrics.STRING_RECALL and metrics.LIST in gold[0]


def _is_right(answer: str, gold: Sequence[str], figure: str) -> bool:
    """Whether an answer matches a right one; of a list all items are said, in whatever order."""
    if _is_list(gold, figure):
        return all(metrics.contains(answer, (item,)) for item in gold[0].split(metrics.LIST))
    return metrics.exact_match(answer, gold)


def _place(
    answer: str, right: Sequence[str], example: Example, needed: Sequence[int] | None
) -> str:
    """Where an answer's words stand: what was read, if it is wrong.

    Returns:
      "gold" for a document that the question needs, "other" for another document, else "nowhere";
      "unanswered" where there is no answer (reasoning that never came to one, say), "closed" where
      it or a right answer is yes or no, which stands in no document as such, "" where it is not
      known which documents are needed, and for lists. Texts are compared as scores compare them.
    """
    if not answer:
        return "unanswered"
    if any(metrics.is_closed(text) for text in (answer, *right)):
        return "closed"
    if needed is None:
        return ""
    holding = [i for i, d in enumerate(example.documents) if metrics.contains(d, (answer,))]
    if not holding:
        return "nowhere"
    return "gold" if set(holding) & set(needed) else "other"


class RowFile:
    """rows.jsonl, which only grows: a line that cannot be used stays, and its work is done again.

    A line that two processes wrote, both at work in the folder, counts once. `num_damaged` is how
    many lines are passed over: cut short, changed since, or of an earlier version, without digests.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.rows: list[dict] = []
        self.done: set[tuple[str, str]] = set()  # examples' ids and specs
        self.num_damaged = 0
        content = path.read_bytes() if path.exists() else b""
        for line in content.splitlines():
            try:
                rows = [sealed.unstamped(r) for r in json.loads(line)]
                answered = {(r["example"], spec_of(r)) for r in rows}
            except sealed.WRONG_JSON:
                self.num_damaged += 1
                continue
            if not answered & self.done:
                self.rows += rows
                self.done |= answered

    @property
    def specs(self) -> list[str]:
        """Methods that have answers here."""
        return list(dict.fromkeys(spec_of(r) for r in self.rows))

    def write(self, rows: list[dict]) -> None:
        """Appends all rows of a method and an example: one line, whole or not there."""
        append_line(self._path, json.dumps([sealed.stamped(r) for r in rows]))
        self.rows += rows


def claim(workdir: pathlib.Path, identity: dict) -> None:
    """Writes run.json, or refuses a workdir whose rows came from other settings.

    Methods may be added: an adapter or a primer is that of the rows of methods with one, once there
    are any.

    Raises:
      ValueError: naming what differs, or a run.json that is damaged.
    """
    path = workdir / "run.json"
    stored = identity
    if path.exists():
        stored = sealed.read_json(
            path,
            "It says which settings the answers beside it came from. If they are those of this "
            "command, remove the file; else, or if an earlier version wrote it, choose another "
            "--workdir.",
        )
    for part in ("adapter", "primer"):
        known = {stored.get(part, "none"), identity.get(part, "none")} - {"none"}
        if len(known) < 2:
            used = next(iter(known), "none")
            stored, identity = stored | {part: used}, identity | {part: used}
    subject = f"{workdir} holds answers of another run"
    resume.check(resume.wherever(stored), resume.wherever(identity), subject)
    write_whole(path, json.dumps(sealed.stamped(identity), indent=1) + "\n")
