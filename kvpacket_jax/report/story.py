"""What the demo says around its tables: what is asked, what to conclude, what to type next."""

import shlex
import textwrap

from kvpacket_jax.adapters import NONE
from kvpacket_jax.data import Example
from kvpacket_jax.doubt import RECOMPUTE_BELOW, is_in_doubt
from kvpacket_jax.evaluate.compare import Comparison
from kvpacket_jax.evaluate.summary import REFERENCE
from kvpacket_jax.measure import timing
from kvpacket_jax.runtime.progress import WIDTH

LINES = 3  # of a document that is shown


def opening(example: Example) -> str:
    """The beginning of the first document and the first question."""
    document = " ".join(example.documents[0].split())
    lines = textwrap.wrap(document, WIDTH - 4, max_lines=LINES, placeholder=" …")
    shown = textwrap.indent("\n".join(lines), "  ")
    return (
        f"The first of {len(example.documents)} documents begins:\n\n{shown}\n\n"
        f'The first of {len(example.questions)} questions: "{example.questions[0].text}"\n\n'
        "The document most like a question is read first, as launch.answer does, by every method.\n"
    )


def conclusion(
    comparison: Comparison, adapter: str, packets: str, bare: str = "no_recompute"
) -> str:
    """What the comparison says, in a few sentences.

    Args:
      adapter: its parts, in words.
      packets, bare: the rows of wrapped and of bare packets.
    """
    runs = {cost.method: cost.runs_s for cost in comparison.costs}
    right = {name: sum(r.right for r in comparison.replies if r.method == name) for name in runs}
    count = len(comparison.replies) // len(runs)
    sooner = timing.ratio(runs[REFERENCE], runs[packets])
    verdict = _verdict(right[packets], right[bare], right[REFERENCE])
    of_it = "" if adapter == NONE else f" So here the adapter, {adapter}, {verdict}"
    return (
        f"What to conclude: {packets} answers from documents that were cached one by one, its "
        f"first token {sooner:.0f} times sooner than {REFERENCE}'s, which reads all of them again. "
        f"Right of {count} answers: {REFERENCE} {right[REFERENCE]}, {packets} {right[packets]}, "
        f"{bare} {right[bare]}, which has the same caches without an adapter."
        f"{of_it}{_guarded(comparison, packets)}"
    )


def _verdict(adapted: int, bare: int, full: int) -> str:
    """What an adapter did, by the numbers of right answers."""
    if adapted < bare:
        return f"costs right answers ({bare - adapted}): do without it (--adapter=none)."
    if bare >= full:
        return "has nothing to win back: caching documents apart loses no answer."
    share = "none" if adapted == bare else "all" if adapted >= full else "part"
    return f"wins back {share} of what caching documents apart loses."


def _guarded(comparison: Comparison, packets: str) -> str:
    """What reading again in doubt would do, in a sentence; "" where no answer is in doubt."""
    mine, full = (
        [r for r in comparison.replies if r.method == name] for name in (packets, REFERENCE)
    )
    doubt = [
        r.confidence is not None and is_in_doubt(r.confidence, r.elsewhere, RECOMPUTE_BELOW)
        for r in mine
    ]
    if not any(doubt):
        return ""
    right = sum((f if d else r).right for d, r, f in zip(doubt, mine, full, strict=True))
    return (
        " Where an answer is in doubt, launch.answer reads the documents in full: "
        f"here for {sum(doubt)} of {len(doubt)} questions, and {right} are right with that."
    )


def next_command(model: str, default: str) -> str:
    """How to go on with documents of one's own."""
    flag = "" if model == default else f" --model={shlex.quote(model)}"
    return (
        "Next, documents of your own, one JSON object a line:\n\n"
        """  echo '{"id": "ferry", "text": "The ferry to Lune leaves at 7:40."}' > docs.jsonl\n"""
        f"  .venv/bin/python -m launch.build_packets{flag} --input=docs.jsonl --store=packets\n"
        f"  .venv/bin/python -m launch.answer{flag} --store=packets --documents=ferry "
        '--query="When does the ferry leave?"'
    )
