"""Methods from text."""

import dataclasses
from typing import Literal

import pytest

from kvpacket_jax.compress import make
from kvpacket_jax.methods import METHODS, Method, settings
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter


@dataclasses.dataclass(frozen=True)
class Sample(Method):
    adapter_role = "adapter"

    ratio: float = 0.15
    layer: int | None = 1
    exact: bool = False
    where: Literal["first", "last"] = "first"
    adapter: Adapter | None = None
    fixed: int = dataclasses.field(default=3, init=False)

    def __post_init__(self):
        if self.ratio > 1:
            raise ValueError(f"ratio {self.ratio} is above 1.")


@pytest.fixture(autouse=True)
def sample(monkeypatch):
    monkeypatch.setitem(METHODS, "sample", Sample)


def test_values_get_the_types_of_their_fields_and_labels_one_spelling():
    label, method = settings.make(" sample: where=last, layer=none,exact=True,ratio=.3 ")
    assert method == Sample(0.3, None, True, "last")
    assert label == "sample:ratio=0.3,layer=none,exact=true,where=last"
    assert settings.make(label) == (label, method)
    assert settings.make("sample:layer=2")[1] == Sample(layer=2)


def test_an_adapter_goes_to_the_methods_that_use_one():
    soft = adapter_lib.empty(4)
    assert settings.make("sample", soft)[1].adapter is soft
    assert settings.make("kv_packet", soft)[1].adapter is soft
    assert settings.make("primed", None, soft)[1].adapter is soft
    assert settings.make("primed", soft)[1].adapter is None
    assert settings.make("no_recompute", soft) == ("no_recompute", METHODS["no_recompute"]())


def test_packets_are_compressed_by_a_setting():
    label, method = settings.make("kv_packet: keep=.25, compress=snapkv/window=8")
    assert label == "kv_packet:compress=snapkv/window=8,keep=0.25"
    assert method.compressor == make("snapkv/window=8/keep=0.25")
    assert settings.make("no_recompute:compress=knorm")[1].compressor == make("knorm")
    assert all(METHODS[name]().compressor is None for name in METHODS)


def test_every_method_can_be_named():
    for name in METHODS:
        assert settings.make(name) == (name, METHODS[name]())


def test_lists_keep_settings_with_their_method():
    text = "no_cache, sample:ratio=0.3,layer=2,,kv_packet,sample:exact=true"
    specs = ["no_cache", "sample:ratio=0.3,layer=2", "kv_packet", "sample:exact=true"]
    assert settings.split(text) == specs


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("smaple", "no method 'smaple' .did you mean sample.*Methods: full_recompute"),
        (
            "sample:rato=1",
            "'rato=1' is not a setting .did you mean ratio.*layer .a whole",
        ),
        ("sample:adapter=1", "'adapter=1' is not a setting"),
        ("sample:fixed=1", "'fixed=1' is not a setting"),
        ("sample:ratio", "'ratio' is not field=value"),
        ("sample:ratio=1,ratio=0", "'ratio=0' is given twice"),
        ("sample:ratio=x", "ratio is a number, not 'x'"),
        ("sample:layer=0.5", "layer is a whole number or none, not '0.5'"),
        ("sample:exact=1", "exact is true or false, not '1'"),
        ("sample:where=middle", "where is first or last, not 'middle'"),
        ("kv_packet:compress=snapvk", "no compressor 'snapvk' .did you mean snapkv"),
        ("no_recompute:compress=knorm,keep=2", "keep is a share of the slots"),
        ("kv_packet:keep=0.5", "name one, expected_attention say"),
        ("sample:ratio=2", "'sample:ratio=2': ratio 2.0 is above 1"),
    ],
)
def test_mistakes_are_named(spec, error):
    with pytest.raises(ValueError, match=error):
        settings.make(spec)
