"""Packets that stay on the device between requests, so that none is read from its file twice."""

import collections
import pathlib
import threading
from collections.abc import Sequence

import jax

from kvpacket_jax.packets.packet import Packet
from kvpacket_jax.storage import packet_file
from kvpacket_jax.storage.packet_file import Wanted
from models import LanguageModel


class Resident:
    """Called like `packet_file.load`; reads from disk only what is not resident.

    A packet is known by its name and its seal, so a document's new text is another packet. What was
    read and verified once is right whatever becomes of its file. A request holds its packets
    itself: evicting one never takes it from a request. Threads may share it.

    Args:
      num_bytes: the most bytes of packets kept in the memory of all devices together; the least
        recently used go first. 0 keeps none.
    """

    def __init__(self, num_bytes: int):
        if num_bytes < 0:
            raise ValueError(f"resident_bytes is {num_bytes}: it is 0 or more.")
        self._limit = num_bytes
        self._packets: collections.OrderedDict[Wanted, Packet] = collections.OrderedDict()
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
        with self._lock:
            for w in wanted:
                self._keep(w, packets[w])
            while self._bytes > self._limit:
                _, dropped = self._packets.popitem(last=False)
                self._bytes -= _size(dropped)
        return [packets[w] for w in wanted]

    def _keep(self, wanted: Wanted, packet: Packet) -> None:
        if wanted not in self._packets:
            self._bytes += _size(packet)
        self._packets[wanted] = packet
        self._packets.move_to_end(wanted)


def _size(packet: Packet) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(packet.cache))
