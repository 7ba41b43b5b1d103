"""What is said of packets that were made otherwise: the flags of both makes."""

import dataclasses
import re

import pytest

from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.storage.not_found import why
from kvpacket_jax.storage.packet_file import Entry
from kvpacket_jax.storage.provenance import Names
from kvpacket_jax.storage.store import writing
from models.rope import Rope

IT = Provenance("m" * 64, "t" * 64, "p" * 64, "a" * 64, "float32", Rope(1e4))
NAMES = Names("small", "runs/my adapter")
SHARED = dataclasses.replace(IT, model="s" * 64)
OTHER = dataclasses.replace(IT, adapter="b" * 64)


@pytest.mark.parametrize(
    ("stored", "asked", "said"),
    [
        (
            (SHARED, Names("small+shared_layers=1:2", "none")),
            (IT, NAMES),
            "(--model=small --shared_layers=1:2), or .* --model=small --shared_layers=.",
        ),
        ((SHARED, Names()), (IT, NAMES), "Give what it was built with, or .* --model=small."),
        (
            (OTHER, Names("small", "primer --primer=my notes.txt")),
            (IT, NAMES),
            "(--adapter=primer --primer='my notes.txt'), .* --adapter='runs/my adapter' without "
            "--primer.",
        ),
        (
            (OTHER, NAMES),
            (IT, NAMES),
            "What is called the same has changed since: build them again, launch.build_packets.",
        ),
        (
            (dataclasses.replace(IT, template="q" * 64), NAMES),
            (IT, NAMES),
            "(its --template), or .* launch.build_packets its --template.",
        ),
    ],
)
def test_flags_are_those_that_a_program_takes(tmp_path, stored, asked, said):
    with writing(tmp_path) as writer:
        writer.provenance(*stored)
        for id in ("a", "b"):
            writer.document(stored[0], id, Entry("x" * 64))
    text = why(tmp_path, asked[0], ["a", "b", "c"], asked[1])
    first, second = text.splitlines()
    assert first.startswith(f"{tmp_path} has documents 'a', 'b', but made with another ")
    assert re.search(re.escape(said).replace(r"\.\*", ".*") + "$", first), first
    assert "no document 'c'" in second
