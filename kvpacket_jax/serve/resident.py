"""What stays on the device between requests: packets read from files, documents read in full."""

import collections
import pathlib
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.storage import packet_file
from kvpacket_jax.storage.packet_file import Wanted
from models import LanguageModel


class Resident:
    """Called like `packet_file.load`; reads from disk only what is not resident. One model's.

    A packet is known by its name and its seal, so a document's new text is another packet. What was
    read and verified once is right whatever becomes of its file. A request holds its packets
    itself: evicting one never takes it from a request. Threads may share it.

    Args:
      num_bytes: the most bytes kept in the memory of all devices together; the least recently used
        go first. 0 keeps none.
    """

    def __init__(self, num_bytes: int):
        if num_bytes < 0:
            raise ValueError(f"resident_bytes is {num_bytes}: it is 0 or more.")
        self._limit = num_bytes
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(
        self, folder: pathlib.Path, wanted: Sequence[Wanted], model: LanguageModel
    ) -> list[Packet]:
        """The packets, in order; raises as `packet_file.load`."""
        with self._lock:
            known = {w: self._values[w] for w in wanted if w in self._values}
        missing = [w for w in dict.fromkeys(wanted) if w not in known]
        # Outside the lock: a long read holds up nobody, and two threads may read the same.
        read = packet_file.load(folder, missing, model) if missing else []
        fresh = dict(zip(missing, read if self._limit == 0 else jax.device_put(read), strict=True))
        packets = known | fresh
        self._keep({w: packets[w] for w in wanted})
        return [packets[w] for w in wanted]

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What a key stands for, arrays and what else there is: resident, or made now."""
        with self._lock:
            known = key in self._values
            value = self._values[key] if known else None
        if not known:
            value = make()
        self._keep({key: value})
        return value

    def _keep(self, values: dict[Hashable, Any]) -> None:
        with self._lock:
            for key, value in values.items():
                if (size := _size(value)) > self._limit:  # it would drive out the others
                    continue
                self._bytes += 0 if key in self._values else size
                self._values[key] = value
                self._values.move_to_end(key)
            while self._bytes > self._limit:
                _, dropped = self._values.popitem(last=False)
                self._bytes -= _size(dropped)


def _size(value: Any) -> int:
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(value))
