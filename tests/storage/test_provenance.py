"""What is said of packets that were made otherwise: the flags of both makes."""

import dataclasses
import re

import pytest

from kvpacket_jax.packets.packet import Provenance
from kvpacket_jax.storage.entries import folder_of, read_provenance
from kvpacket_jax.storage.not_found import why
from kvpacket_jax.storage.packet_file import Entry
from kvpacket_jax.storage.provenance import Names, names_in
from kvpacket_jax.storage.store import writing
from kvpacket_jax.storage.ways import built_with
from models.rope import Rope

IT = Provenance("m" * 64, "t" * 64, "p" * 64, "a" * 64, "float32", Rope(1e4))
NAMES = Names("small", "runs/my adapter")
SHARED = dataclasses.replace(IT, model="s" * 64)
OTHER = dataclasses.replace(IT, adapter="b" * 64)


@pytest.mark.parametrize(
    ("stored", "asked", "said"),
    [
        (
            (SHARED, Names("small", "none", shared_layers="1:2")),
            (IT, NAMES),
            "(--model=small --shared_layers=1:2), or .* --model=small --shared_layers=.",
        ),
        ((SHARED, Names()), (IT, NAMES), "Give what it was built with, or .* --model=small."),
        (
            (OTHER, Names("small", "primer", primer="my notes.txt")),
            (IT, NAMES),
            "(--adapter=primer --primer='my notes.txt'), .* --adapter='runs/my adapter' without "
            "--primer.",
        ),
        (
            (OTHER, NAMES),
            (IT, NAMES),
            "The same names now mean something else: build them again, launch.build_packets.",
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
HALF = dataclasses.replace(IT, compressor="snapkv/keep=0.5")
ITS = {
    "model": "small",
    "shared_layers": "",
    "adapter": "runs/my adapter",
    "primer": "",
    "compress": "",
    "dtype": "float32",
}
SMALL = {"compress": "snapkv/keep=0.25"}
ALIKE = {flag: value for flag, value in ITS.items() if flag != "compress"}
PRIMED = NAMES._replace(shared_layers="1:2", adapter="primer", primer="similar:3")
UNNAMED = NAMES._replace(adapter="", parts="8 + 8 soft tokens")


@pytest.mark.parametrize(
    ("builds", "asked", "found"),
    [
        ([(IT, NAMES)], {}, ITS),
        ([(IT, NAMES._replace(template="chat"))], {}, ITS | {"template": "chat"}),
        ([(IT, NAMES)], {"template": "chat"}, ITS),  # not known, and so not another
        ([(COMPRESSED, NAMES)], {}, ITS | SMALL),
        # A path may be another name for the same; it is seen when packets are read.
        ([(IT, NAMES)], {"adapter": "./runs/my adapter"}, ITS),
        ([(IT, NAMES)], {"adapter": "elsewhere"}, ITS),
        # Of several what they share, unless one alone is as asked.
        ([(IT, NAMES), (COMPRESSED, NAMES)], {}, ALIKE),
        ([(IT, NAMES), (COMPRESSED, NAMES)], {"compress": ""}, ITS),
        ([(OTHER, PRIMED), (COMPRESSED, NAMES)], {"adapter": "runs/my adapter"}, ITS | SMALL),
        (
            [(SHARED, PRIMED)],
            {},
            ITS | dict(shared_layers="1:2", adapter="primer", primer="similar:3"),
        ),
        # Of an adapter without a name, and of a store of an earlier version, less is known.
        ([(IT, UNNAMED)], {}, ITS | {"adapter": None}),
        ([(IT, Names())], {}, {"compress": "", "dtype": "float32"}),
    ],
)
def test_what_documents_were_built_with_is_asked_for(tmp_path, builds, asked, found):
    with writing(tmp_path) as writer:
        for made_by, names in builds:
            writer.provenance(made_by, names)
            for id in ("a", "b"):
                writer.document(made_by, id, Entry("x" * 64))
        writer.provenance(HALF, NAMES)
        writer.document(HALF, "b", Entry("x" * 64))
    expected = {flag: value for flag, value in found.items() if value is not None}
    shared, several = built_with(tmp_path, ["a", "b"], asked)
    assert shared == expected and bool(several) == ("compress" not in expected)
    assert built_with(tmp_path, ["a", "absent"], asked) == ({}, [])
    any_way, several = built_with(tmp_path, ["a", "b"], asked, any_way=True)
    assert any_way.keys() >= expected.keys() and "compress" in any_way and not several


def test_what_was_never_built_so_is_said_without_a_model(tmp_path):
    with writing(tmp_path) as writer:
        for made_by in (COMPRESSED, HALF):
            writer.provenance(made_by, NAMES)
            writer.document(made_by, "a", Entry("x" * 64))
    asked = {"adapter": "any", "dtype": "float32", "compress": ""}
    with pytest.raises(ValueError) as refused:
        built_with(tmp_path, ["a"], asked)
    for said in ("--compress=snapkv/keep=0.25", "--compress=snapkv/keep=0.5"):
        assert said in str(refused.value)
    assert "; asked for: no --compress. Leave it out, or build" in str(refused.value)


def test_documents_that_share_no_build_are_named_with_theirs(tmp_path):
    with writing(tmp_path) as writer:
        for made_by, names, ids in ((IT, NAMES, "ab"), (COMPRESSED, PRIMED, "cd")):
            writer.provenance(made_by, names)
            for id in ids:
                writer.document(made_by, id, Entry("x" * 64))
    assert built_with(tmp_path, ["c", "d"], {}).shared["compress"] == "snapkv/keep=0.25"
    with pytest.raises(ValueError, match="No build has all of these documents") as refused:
        built_with(tmp_path, ["a", "b", "c"], {})
    said = str(refused.value)
    assert "'a', 'b' with no --shared_layers --adapter='runs/my adapter' no --primer no --c" in said
    assert "'c' with --shared_layers=1:2 --adapter=primer --primer=similar:3 --compress=s" in said


def test_a_model_that_is_surely_another_is_said_before_one_is_loaded(tmp_path):
    demo = NAMES._replace(model="smollm2-135m")
    with writing(tmp_path) as writer:
        writer.provenance(IT, demo)
        writer.document(IT, "a", Entry("x" * 64))
    with pytest.raises(ValueError, match="--model=smollm2-135m; asked for: --model=qwen2.5-coder"):
        built_with(tmp_path, ["a"], {"model": "qwen2.5-coder-0.5b", "adapter": "runs/my adapter"})
    assert built_with(tmp_path, ["a"], {"model": "a/folder"}).shared["model"] == "smollm2-135m"


def test_bare_packets_are_surely_others_than_an_adapters(tmp_path):
    with writing(tmp_path) as writer:
        writer.provenance(IT, NAMES)
        writer.document(IT, "a", Entry("x" * 64))
    with pytest.raises(
        ValueError, match=r"with --adapter='runs/my adapter'; asked for: --adapter="
    ):
        built_with(tmp_path, ["a"], {"adapter": "none"})
    assert built_with(tmp_path, ["a"], {"adapter": "elsewhere"}).shared  # a path may have moved


def test_a_name_is_not_lost_to_an_adapter_without_one(tmp_path):
    fields = lambda: read_provenance(folder_of(tmp_path, IT) / "provenance.json")  # noqa: E731
    with writing(tmp_path) as writer:
        for given, kept in ((UNNAMED, UNNAMED), (NAMES, NAMES), (UNNAMED, NAMES.adapter)):
            writer.provenance(IT, given)
            found = names_in(fields())
            assert found == kept or found == UNNAMED._replace(adapter=kept)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ({"model": "m", "adapter": "runs/a"}, Names("m", "runs/a")),
        (
            {"model": "m+shared_layers=1:2", "adapter": "primer --primer=my notes"},
            Names("m", "primer", shared_layers="1:2", primer="my notes"),
        ),
        ({"model": "m", "adapter": "8 + 8 soft tokens"}, Names("m", parts="8 + 8 soft tokens")),
        (
            {"model": "m", "adapter": "a primer of 5 tokens"},
            Names("m", parts="a primer of 5 tokens"),
        ),
    ],
)
def test_names_of_earlier_versions_are_told_apart(written, found):
    assert names_in({"names": written}) == found
    shown = found.shown_model, found.shown_adapter
    assert shown == (written["model"], written["adapter"])


def test_of_any_builds_the_usual_one_is_taken(tmp_path):
    """A document may have been renewed in that one alone."""
    for i in range(8):  # in whatever order their folders stand
        folder = tmp_path / str(i)
        bare, own = (dataclasses.replace(IT, adapter=f"{i}{name}" * 32) for name in "bo")
        with writing(folder) as writer:
            for provenance, adapter in ((bare, "none"), (own, "primer")):
                writer.provenance(provenance, Names("small", adapter))
                writer.document(provenance, "a", Entry("x" * 64))
        assert built_with(folder, ["a"], {}, any_way=True).shared["adapter"] == "primer"
        assert built_with(folder, ["a"], {"adapter": "none"}, True).shared["adapter"] == "none"
