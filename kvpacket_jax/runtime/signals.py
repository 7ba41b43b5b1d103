"""Signals that ask a long run to stop at a good place."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal that asked to stop, SIGTERM or SIGINT, or 0.

    Only a program's main thread receives signals. A second Ctrl-C stops at once, as usual.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    received = 0

    def remember(number, _):
        nonlocal received
        received = number
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            # Not print: it may have been interrupted itself.
            os.write(2, b"\nStops after this step, with all saved. Ctrl-C again: at once.\n")

    signal.signal(signal.SIGTERM, remember)
    if before[signal.SIGINT] is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
