"""What is said of packets that were made otherwise: the flags of both makes."""

import dataclasses
import re

import pytest

from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.storage.not_found import why
from kvpacket_jax.storage.packet_file import Entry
from kvpacket_jax.storage.provenance import Names
from kvpacket_jax.storage.store import built_with, writing
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
        (
            (dataclasses.replace(IT, template="q" * 64), NAMES._replace(template="completion")),
            (IT, NAMES._replace(template="chat")),
            "(--template=completion), or .* launch.build_packets --template=chat.",
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


COMPRESSED = dataclasses.replace(IT, compressor="snapkv/keep=0.25")
ITS = {
    "model": "small",
    "shared_layers": "",
    "adapter": "runs/my adapter",
    "primer": "",
    "compress": "",
    "dtype": "float32",
}


@pytest.mark.parametrize(
    ("builds", "asked", "found"),
    [
        ([(IT, NAMES)], {}, ITS),
        ([(IT, NAMES._replace(template="chat"))], {}, ITS | {"template": "chat"}),
        ([(IT, NAMES)], {"adapter": "none"}, {}),
        ([(IT, NAMES)], {"template": "chat"}, ITS),  # not known, and so not another
        ([(COMPRESSED, NAMES)], {}, ITS | {"compress": "snapkv/keep=0.25"}),
        ([(IT, NAMES), (COMPRESSED, NAMES)], {}, {}),  # which of them is not said
        ([(IT, NAMES), (COMPRESSED, NAMES)], {"compress": ""}, ITS),
        (
            [(SHARED, Names("small+shared_layers=1:2", "primer --primer=similar:3"))],
            {},
            ITS | {"shared_layers": "1:2", "adapter": "primer", "primer": "similar:3"},
        ),
        # Of an adapter without a name, and of a store of an earlier version, less is known.
        ([(IT, Names("small", "8 + 8 soft tokens"))], {}, ITS | {"adapter": None}),
        ([(IT, Names())], {}, {"compress": "", "dtype": "float32"}),
    ],
)
def test_what_was_built_in_one_way_is_asked_for_so(tmp_path, builds, asked, found):
    with writing(tmp_path) as writer:
        for made_by, names in builds:
            writer.provenance(made_by, names)
            for id in ("a", "b"):
                writer.document(made_by, id, Entry("x" * 64))
        writer.provenance(OTHER, NAMES)
        writer.document(OTHER, "b", Entry("x" * 64))
    expected = {flag: value for flag, value in found.items() if value is not None}
    assert built_with(tmp_path, ["a", "b"], asked) == expected
    assert built_with(tmp_path, ["a", "absent"], asked) == {}
