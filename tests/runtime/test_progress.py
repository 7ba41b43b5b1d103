"""What is shown while something runs: lines where there is no terminal, a bar where there is."""

import io
from collections.abc import Sequence

import rich.console

from kvpacket_jax.runtime import progress


class Screen:
    """What is shown, and the clock it goes by."""

    def __init__(self, monkeypatch, terminal: bool):
        self.out, self.now = io.StringIO(), 0.0
        console = rich.console.Console(
            file=self.out, force_terminal=terminal, width=110, get_time=self.clock
        )
        monkeypatch.setattr(progress, "console", console)
        monkeypatch.setattr(progress.time, "perf_counter", self.clock)

    def clock(self) -> float:
        return self.now

    def follow(self, items: Sequence, seconds: float) -> list[str]:
        """Goes through items that take so long each; the lines shown."""
        for _ in progress.track(items, "answering"):
            self.now += seconds
        return self.out.getvalue().splitlines()


def test_a_log_gets_lines_with_the_time_left(monkeypatch):
    # Steps longer than the 30 s that rich looks back by itself.
    assert Screen(monkeypatch, terminal=False).follow("abcd", 60) == [
        "answering 1/4",
        "answering 2/4  0:02:00 left",
        "answering 3/4  0:01:00 left",
        "answering 4/4  in 0:04:00",
    ]


def test_lines_are_seldom(monkeypatch):
    lines = Screen(monkeypatch, terminal=False).follow(range(1000), 0.1)
    assert len(lines) == 3  # of 100 s


def test_a_host_that_shows_nothing_says_nothing(monkeypatch):
    out = Screen(monkeypatch, terminal=False).out
    with progress.Bar("training", 2, shown=False) as bar:
        bar.update(1, "1/2")
        bar.say("step 1: validation")
    assert not out.getvalue()


def test_brackets_are_no_markup(monkeypatch):
    screen = Screen(monkeypatch, terminal=False)
    with progress.step("Reading /data/[old]/[/x]"):
        pass
    assert screen.out.getvalue() == "Reading /data/[old]/[/x] …\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    assert "4/4" in "".join(Screen(monkeypatch, terminal=True).follow("abcd", 60))


def test_a_function_tells_one_object_and_need_not_know_who_listens(monkeypatch):
    screen = Screen(monkeypatch, terminal=False)
    for told in (progress.SILENT, progress.SHOWN):
        with told.step("Reading"):
            pass
        for _ in told.track("ab", "answering"):
            screen.now += 60
        told.say("[done]")
    assert screen.out.getvalue().splitlines() == [
        "Reading …",
        "answering 1/2",
        "answering 2/2  in 0:02:00",
        "[done]",
    ]


def test_what_was_done_before_counts_as_done_and_tells_no_time(monkeypatch):
    screen = Screen(monkeypatch, terminal=False)
    for _ in progress.SHOWN.track("abcd", "answering", 96):
        screen.now += 60
    lines = screen.out.getvalue().splitlines()
    assert lines[0] == "answering 97/100" and lines[1] == "answering 98/100  0:02:00 left"


def test_the_time_left_is_of_what_was_done_lately(monkeypatch):
    """Compiling before the first step, and a pause, would be days of the steps that are left."""
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Bar("training", 100, completed=40, shown=False) as bar:
        monkeypatch.setattr(bar, "say", said.append)
        for done, seconds in ((41, 1000), (42, 20), (44, 40), (45, 5000), (47, 40), (100, 1080)):
            now[0] += seconds
            bar.update(done, f"{done}/100")
    assert said[-2].endswith("47/100  0:17:40 left")  # 53 of 20 seconds
    assert said[-1].endswith("100/100  in 1:59:40")


def test_a_burst_of_updates_is_one(monkeypatch):
    """Batches of four finish together."""
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress.Bar("asking", 100, shown=False) as bar:
        monkeypatch.setattr(bar, "say", said.append)
        for done in range(1, 41):
            now[0] += 60 if done % 4 == 1 else 0.01
            bar.update(done, f"{done}/100")
    assert said[-1].startswith("asking 37/100") and "  0:15:4" in said[-1]  # 63 at 15 s
