"""Packets that are put into a store without launch.build_packets."""

from kvpacket_jax.packets.packet import Provenance, build_packets, provenance_of
from kvpacket_jax.storage import store


def put(folder, model, adapter, *documents) -> list[tuple[str, Provenance]]:
    packets = build_packets(model, adapter, documents)
    with store.writing(folder) as writer:
        entries = [writer.place(writer.prepare(packet)) for packet in packets]
    return [(entry.packet, provenance_of(model, adapter)) for entry in entries]
