"""Lengths are rounded up to a few sizes, so that no request compiles a program of its own."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

LEAST_ROWS, LEAST_SLOTS = 64, 512  # below, padding costs little
CHUNK = 16  # tokens decoded by one program before the host looks at them


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The sizes in use: few, for each context with each query, and with each packet, is a program.

    Documents are often cut at powers of two and wrapped in up to 32 soft tokens. So packets have
    that much more than a power of two, and contexts of two, four, eight, … such documents fit well.
    """

    queries: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    contexts: tuple[int, ...] = (640, 1280, 1920, 2560)  # doubled beyond the longest
    min_packet: int = 64  # without its soft tokens
    soft_tokens: int = 32
    new_tokens: int = 256  # what a tail holds beyond the longest query, unless more is asked for
    coarse: bool = False  # `rows` and `recomputed_context` have fewer sizes, with more padding

    def query(self, length: int) -> int:
        """Rows of a query of `length` tokens; multiples of the longest bucket beyond it."""
        longest = self.queries[-1]
        if length > longest:
            return round_up(length, longest)
        return self.queries[bisect.bisect_left(self.queries, length)]

    def tail(self, query_rows: int, new_tokens: int) -> int:
        """Slots of a request's own cache: one capacity for all requests of ordinary size."""
        common = self.queries[-1] + self.new_tokens
        needed = query_rows + whole_chunks(new_tokens)
        return max(common, round_up(needed, common))

    def packet(self, length: int) -> int:
        """Slots of a packet on the device."""
        return power_of_two(length - self.soft_tokens, self.min_packet) + self.soft_tokens

    def compressed(self, slots: int) -> int:
        """Slots of a compressed packet on the device: near what it stores, for that is the point.

        Each size is a small program. Steps are pages up to 1,024, then 2 to 3 %.
        """
        return round_up(slots, power_of_two(slots, 1024) // 64)

    def context(self, slots: int) -> int:
        """Slots of a composed context."""
        longest = self.contexts[-1]
        if slots > longest:
            return power_of_two(slots, longest)
        return self.contexts[bisect.bisect_left(self.contexts, slots)]

    def reading(self, slots: int) -> int:
        """Slots of documents that are read in full: finer steps where they are long and large."""
        longest = self.contexts[-1]
        if slots <= longest:
            return self.context(slots)
        return round_up(slots, power_of_two(slots, longest) // 8)

    def build(self, length: int) -> int:
        """Rows a document is computed with: finer than `packet`, for here padding costs FLOPs."""
        full = self.packet(length)
        return full * 3 // 4 if length <= full * 3 // 4 else full

    def rows(self, length: int) -> int:
        """Rows of a pass over tokens of documents: at most 10 % more, for a baseline at its best.

        With `coarse` at most a quarter more. Below 64 they are multiples of 8 either way.
        """
        if self.coarse:
            return round_up(length, power_of_two(length, LEAST_ROWS) // 8)
        return bucket(length)

    def recomputed_context(self, slots: int) -> int:
        """Slots of a context of which a part is recomputed: many rows attend to all of it.

        Eight sizes between doublings, with `coarse` two. Their steps are powers of two and no
        smaller than those of `rows`: the rows of a whole context fit.
        """
        step = power_of_two(slots, LEAST_SLOTS) // (4 if self.coarse else 16)
        return max(LEAST_SLOTS, round_up(slots, step))


# Few programs, where answers are wanted and no times: an evaluation reads real documents of all
# lengths, and on a CPU compiles a program for longer than it runs it.
COARSE = Buckets(queries=(32, 64, 128, 256), contexts=(640, 1280, 2560), coarse=True)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def power_of_two(n: int, least: int) -> int:
    """The smallest `least * 2**i` that is at least `n`."""
    size = least
    while size < n:
        size *= 2
    return size


def in_batches(items: Sequence, most: int) -> Iterator[Sequence]:
    """The items, in order, in batches of 1, 4, 16, … and at most `most` of them, or 1.

    Each size is a program, so they are few; and no batch is padded.
    """
    at = 0
    while at < len(items):
        size = 1
        while size * 4 <= min(most, len(items) - at):
            size *= 4
        yield items[at : at + size]
        at += size


def bucket(length: int) -> int:
    """`length` rounded up to a ladder with steps of 5 to 10 %; of 8 below 160, where 8 is more."""
    step = 8
    while step * 2 * 10 <= length:
        step *= 2
    return round_up(length, step)


def whole_chunks(new_tokens: int) -> int:
    """Slots that decoding so many tokens may write: it runs in chunks."""
    return round_up(new_tokens, CHUNK)
