"""Answers to the questions of a command line or of standard input, printed."""

import functools
import sys

from launch.common import errors


def give(
    opened,
    query: str | None,
    new_tokens: int,
    recompute_below: float,
    show_cost: bool,
    best_first: bool,
) -> bool:
    """Answers one question, or line after line of standard input; whether one had no answer.

    The errors of one question end the program; of many they are said, and the next is answered.

    Args:
      opened: a `session.Session`, for the first question.
      query: None for standard input.
      recompute_below: as `session.answer_all` has it.
      show_cost: says after each answer what it cost.
      best_first: opens the order of each question: `found.closest`.
    """
    from kvpacket_jax.serve import found, request_cost, session

    was_read = False

    def in_doubt(question: str, doubtful) -> None:
        nonlocal was_read
        size = f"{opened.num_tokens:,} tokens in full"
        how = "answering from the full documents" if was_read else f"reading {size}"
        to = f" to {question!r}" if query is None else ""  # of many
        for said in doubtful:
            print(f"In doubt of {said.text!r}{to} ({said.reason}): {how}.", file=sys.stderr)
        was_read = True

    def reply(question: str) -> None:
        nonlocal opened, was_read
        session.check_question(question)
        if best_first and (first := found.closest(opened.found, question)) != opened.order[0]:
            opened, was_read = session.read(opened.found, first), False  # from what is resident
        if recompute_below and opened.full is not None:
            say = functools.partial(in_doubt, question)
            given = [question], new_tokens, recompute_below, say
            (said,) = session.answer_all(opened, *given)
            print(said.text, flush=True)  # a pipe's reader waits for it
            reread = said.reread
        else:
            _print(session.answer(opened, question, new_tokens))
            reread = False
        if show_cost:
            if reread:
                print("Given in doubt, this answer cost both: packets, and full_recompute.")
            print(request_cost.text(opened, request_cost.measure(opened, question)), flush=True)

    if query is not None:
        with errors.in_one_line():
            reply(query)
        return False
    sys.stdin.reconfigure(errors="surrogateescape")  # so that the question at fault is named
    failed = False
    with errors.in_one_line():
        for question in session.questions():
            try:
                reply(question)
            except errors.EXPECTED as error:  # the next question may fit
                print(errors.words(error), file=sys.stderr)
                failed = True
    return failed


def _print(pieces) -> None:
    begun = False
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            begun = True
    except BaseException:
        if begun:  # what comes next gets a line of its own
            print(flush=True)
        raise
    print(flush=True)
