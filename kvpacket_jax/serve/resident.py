"""What stays in memory between requests: packets, alone and side by side, full readings, texts."""

import pathlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.storage import packet_file
from kvpacket_jax.storage.packet_file import Wanted
from models import LanguageModel

RESIDENT_BYTES = 1 << 30  # the usual limit


class Resident:
    """Called like `packet_file.load`; reads from disk only what is not resident. One model's.

    A packet is known by its name and its seal, so a document's new text is another packet. What was
    read and verified once is right whatever becomes of its file. A request holds its packets
    itself: evicting one never takes it from a request. Threads may share it.

    Args:
      num_bytes: the most bytes kept, an array on several devices counted once; the least recently
        used go first, packets laid side by side before full readings, those before packets. 0 keeps
        none.
    """

    def __init__(self, num_bytes: int):
        if num_bytes < 0:
            raise ValueError(f"resident_bytes is {num_bytes}: it is 0 or more.")
        self._limit = num_bytes
        self._packets: OrderedDict[Wanted, Packet] = OrderedDict()
        self._laid: OrderedDict[Hashable, Any] = OrderedDict()
        self._read: OrderedDict[Hashable, Any] = OrderedDict()
        self._texts: OrderedDict[Hashable, str] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(
        self, folder: pathlib.Path, wanted: Sequence[Wanted], model: LanguageModel
    ) -> list[Packet]:
        """The packets, in order; raises as `packet_file.load`."""
        with self._lock:
            known = {w: self._packets[w] for w in wanted if w in self._packets}
        missing = [w for w in dict.fromkeys(wanted) if w not in known]
        # Outside the lock: a long read holds up nobody, and two threads may read the same.
        read = packet_file.load(folder, missing, model) if missing else []
        fresh = dict(zip(missing, read if self._limit == 0 else jax.device_put(read), strict=True))
        packets = known | fresh
        self._keep(self._packets, {w: packets[w] for w in wanted})
        return [packets[w] for w in wanted]

    def laid(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Packets side by side: resident, or laid now. Cheap to make, they are the first to go."""
        return self._get(self._laid, key, make)

    def read(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Documents read in full: resident, or read now.

        They serve requests with these documents in their order, packets serve all: they go before.
        """
        return self._get(self._read, key, make)

    def text(self, key: Hashable, make: Callable[[], str]) -> str:
        """A document's text: resident, or made now. Far smaller than a packet, it is the last."""
        return self._get(self._texts, key, make)

    def _get(self, kept: OrderedDict, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            found = {key: kept[key]} if key in kept else {}
        found = found or {key: make()}
        self._keep(kept, found)
        return found[key]

    def _keep(self, kept: OrderedDict, values: Mapping) -> None:
        with self._lock:
            for key, value in values.items():
                if (size := _size(value)) > self._limit or not self._limit:
                    continue  # it would drive out the others
                self._bytes += 0 if key in kept else size
                kept[key] = value
                kept.move_to_end(key)
            while self._bytes > self._limit:
                first = self._laid or self._read or self._packets or self._texts
                _, dropped = first.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return sys.getsizeof(value)
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(value))
