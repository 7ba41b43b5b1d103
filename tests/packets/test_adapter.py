"""The adapter's parts: what they do to packets, and that they are saved and named as they are."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import models
from kvpacket_jax import adapters
from kvpacket_jax.methods import METHODS
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import build_packets, check_adapter, read_primer
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.runtime import sealed
from models import kv_cache, low_rank
from tests.support.golden import CASES, GOLDEN, load_case
from tests.support.writers import published_writer


def arrays_of(cache) -> list[np.ndarray]:
    """Keys and values `[L, K, S, H]` of a cache's valid slots."""
    seen = np.asarray(cache.valid[0])
    stacked = (np.stack([np.asarray(x) for x in part])[:, 0] for part in (cache.k, cache.v))
    return [x[:, seen].transpose(0, 2, 1, 3) for x in stacked]


@pytest.mark.parametrize("kind", ["sempic", "sempic_kvpacket"])
@pytest.mark.parametrize("name", CASES)
def test_packets_of_a_writer_equal_the_published(tiny, name, kind):
    """SemPIC (arXiv 2607.28069): low-rank changes only while packets are built."""
    family = CASES[name]["model"]
    case = load_case(name, tiny(family, scan_layers=family == "tiny_llama31"))
    model, expected = case.model, np.load(GOLDEN / f"sempic_{name}.npz")
    arrays = np.load(GOLDEN / f"sempic_train_{family}.npz")
    adapter = adapter_lib.empty(model.config.dim)
    if kind == "sempic_kvpacket":
        adapter = Adapter(jnp.asarray(arrays["header0"]), jnp.asarray(arrays["trailer0"]))
    adapter = adapter._replace(writer=published_writer(arrays, model.config))
    method = METHODS["kv_packet"](adapter=adapter, opening=False)
    stored = method.store(model, case.preamble, case.documents)
    for i, packet in enumerate(build_packets(model, adapter, case.documents)):
        for part, ours in zip("kv", arrays_of(packet.cache), strict=True):
            np.testing.assert_allclose(ours, expected[f"{kind}/doc{i}_{part}"], atol=2e-4)
    (context,), start = method.shared_context(model, stored, None)[:2]
    ready = prefill(model, (context,), [case.query], start, 8)
    np.testing.assert_allclose(ready.logits[0], expected[f"{kind}/first_logits"], atol=1e-3)
    greedy = generate(model, (context,), ready, 8, stop_ids=())[0]
    assert greedy == expected[f"{kind}/greedy"].tolist()


PRIMER = list(range(20, 33))
DOCUMENTS = [list(range(40, 49)), list(range(60, 64))]


@pytest.mark.parametrize("family", ["tiny_llama31", "tiny_qwen2", "tiny_qwen3"])
def test_a_packet_after_a_primer_is_the_documents_part_of_one_prefill(tiny, family):
    model = tiny(family)
    adapter = adapter_lib.empty(model.config.dim)._replace(primer=jnp.array(PRIMER, jnp.int32))
    for packet, document in zip(build_packets(model, adapter, DOCUMENTS), DOCUMENTS, strict=True):
        (whole,) = build_packets(model, None, [PRIMER + document])
        back = kv_cache.move(model.config, whole.cache, jnp.int32(-len(PRIMER)))
        assert packet.length == len(document)
        np.testing.assert_array_equal(
            np.asarray(packet.cache.positions)[0, : packet.length], np.arange(len(document))
        )
        for ours, plain in zip(arrays_of(packet.cache), arrays_of(back), strict=True):
            np.testing.assert_allclose(ours, plain[:, :, len(PRIMER) :], atol=2e-5)


def test_a_learned_primer_begins_as_its_token_ids(tiny):
    model = tiny("tiny_qwen2")
    ids = adapter_lib.empty(model.config.dim)._replace(primer=jnp.array(PRIMER, jnp.int32))
    learned = ids._replace(primer=jnp.asarray(model.params["embedding"])[ids.primer])
    caches = [read_primer(model, adapter) for adapter in (ids, learned)]
    jax.tree.map(np.testing.assert_array_equal, *caches)
    assert read_primer(model, None) is read_primer(model, adapter_lib.empty(8)) is None


def test_a_primer_is_read_once_by_each_model(tiny):
    model, other = tiny("tiny_qwen2"), tiny("tiny_qwen3")
    first, second = (
        adapter_lib.empty(model.config.dim)._replace(primer=jnp.array(ids, jnp.int32))
        for ids in (PRIMER, PRIMER[::-1])
    )
    cache = read_primer(model, first)
    assert read_primer(model, first._replace(primer=np.array(PRIMER, np.int32))) is cache
    assert read_primer(other, first) is not cache and read_primer(model, first) is cache
    again = jax.tree.map(np.asarray, cache), read_primer(model, second), read_primer(model, first)
    jax.tree.map(np.testing.assert_array_equal, again[0], again[2])
    assert not np.array_equal(again[0].k[0], again[1].k[0])


def whole_adapter(config) -> Adapter:
    key = jax.random.key(3)
    tokens = jax.random.normal(key, (5, config.dim))
    factors = low_rank.init(config, key, 4, ("q", "v", "down"))
    return Adapter(tokens[:3], tokens[3:], jnp.array(PRIMER, jnp.int32), factors)


def test_every_part_is_saved_and_loaded(tiny, tmp_path):
    model = tiny("tiny_qwen2")
    adapter = whole_adapter(model.config)
    for name, parts in {
        "all": adapter,
        "writer": adapter_lib.empty(model.config.dim)._replace(writer=adapter.writer),
        "primer": adapter_lib.empty(model.config.dim)._replace(primer=adapter.primer),
        "header": adapter._replace(trailer=adapter.trailer[:0], primer=None, writer=None),
    }.items():
        adapter_lib.save_adapter(tmp_path / name, parts, {"model": model.fingerprint})
        loaded = adapter_lib.load_adapter(tmp_path / name, model)
        assert jax.tree.structure(loaded) == jax.tree.structure(parts)
        jax.tree.map(np.testing.assert_array_equal, loaded, parts)
        assert adapter_lib.fingerprint(loaded) == adapter_lib.fingerprint(parts)


def test_an_adapter_is_replaced_by_a_whole_one_or_not_at_all(tiny, tmp_path, monkeypatch):
    old = whole_adapter(tiny("tiny_qwen2").config)
    new = old._replace(header=old.header + 1)
    path = tmp_path / "adapter"
    adapter_lib.save_adapter(path, old, {})
    monkeypatch.setattr(adapter_lib.sealed, "seal_folder", lambda folder: 1 / 0)  # a full disk
    with pytest.raises(ZeroDivisionError):
        adapter_lib.save_adapter(path, new, {})
    assert adapter_lib.is_saved(path, old)
    monkeypatch.undo()
    adapter_lib.save_adapter(path, new, {})
    assert adapter_lib.is_saved(path, new) and [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_rounded_writer_is_stored_in_half_the_bytes_and_loses_nothing(tiny, tmp_path):
    adapter = adapter_lib.rounded(whole_adapter(tiny("tiny_qwen2").config))
    adapter_lib.save_adapter(tmp_path / "adapter", adapter, {})
    stored = ocp.load(tmp_path / "adapter", checkpointable_name="state")
    dtypes = {name.split(".")[0]: x.dtype for name, x in stored.items()}
    assert dtypes["writer"] == jnp.bfloat16 and dtypes["header"] == jnp.float32
    loaded = adapter_lib.load_adapter(tmp_path / "adapter")
    jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
    original = whole_adapter(tiny("tiny_qwen2").config).writer
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), loaded.writer, original)


def test_a_damaged_adapter_is_refused(tiny, tmp_path):
    model = tiny("tiny_qwen2")
    adapter = whole_adapter(model.config)
    arrays = adapter_lib.to_arrays(adapter)
    arrays["header"] = arrays["header"] + 1
    described = {"dim": model.config.dim, "fingerprint": adapter_lib.fingerprint(adapter)}
    ocp.save(tmp_path / "adapter", arrays, custom_metadata=described)
    with pytest.raises(ValueError, match="damaged: its parts are not those that were saved"):
        adapter_lib.load_adapter(tmp_path / "adapter")


def test_every_flipped_byte_of_an_adapter_is_refused(tiny, tmp_path):
    adapter, folder = whole_adapter(tiny("tiny_qwen2").config), tmp_path / "adapter"
    adapter_lib.save_adapter(folder, adapter, {"model": "it"})
    (folder / "card.json").write_text("{}")  # written later, beside it
    adapter_lib.load_adapter(folder)
    rng = random.Random(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "card.json"):
        content = path.read_bytes()
        for place in rng.sample(range(len(content)), min(4, len(content))):
            bad = bytearray(content)
            bad[place] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            if path.name == sealed.FILE and not bad[place : place + 1].strip():
                continue
            with pytest.raises(ValueError, match="is damaged"):
                adapter_lib.load_adapter(folder)
        path.write_bytes(content)
    (folder / sealed.FILE).unlink()
    with pytest.raises(ValueError, match="is damaged: it is incomplete"):
        adapter_lib.load_adapter(folder)


def test_a_saved_adapter_does_not_name_the_machines_folders(tiny, tmp_path):
    folder = tmp_path / "adapter"
    for _ in range(2):  # one that is there is replaced
        adapter_lib.save_adapter(folder, whole_adapter(tiny("tiny_qwen2").config), {"model": "it"})
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    adapter_lib.load_adapter(folder)


def test_an_adapter_that_was_saved_before_there_were_seals_is_loaded(tmp_path):
    shipped = adapters.shipped()["qwen2.5-coder-0.5b-tokens"]
    shutil.copytree(shipped, tmp_path / "old", ignore=shutil.ignore_patterns(sealed.FILE))
    assert (shipped / sealed.FILE).exists()
    one, other = (adapter_lib.load_adapter(path) for path in (shipped, tmp_path / "old"))
    assert adapter_lib.fingerprint(one) == adapter_lib.fingerprint(other)


def test_a_fingerprint_tells_every_part_apart(tiny):
    config = tiny("tiny_qwen2").config
    adapter = whole_adapter(config)
    q = adapter.writer["q"]
    changed = [
        Adapter(adapter.header, adapter.header[:0]),
        Adapter(adapter.header[:0], adapter.header),
        adapter._replace(header=adapter.header.at[0, 0].add(1)),
        adapter._replace(primer=adapter.primer.at[0].add(1)),
        adapter._replace(primer=None),
        adapter._replace(writer=None),
        adapter._replace(writer={**adapter.writer, "q": q._replace(b=q.b.at[0, 0, 0, 0].add(1))}),
        adapter._replace(writer={"k": q, **{n: adapter.writer[n] for n in ("v", "down")}}),
    ]
    names = [adapter_lib.fingerprint(a) for a in [adapter, *changed, None]]
    assert len(set(names)) == len(names)


def test_an_adapter_of_other_sizes_is_refused(tiny):
    model, adapter = tiny("tiny_qwen2"), whole_adapter(tiny("tiny_qwen2").config)
    check_adapter(model, adapter)
    with pytest.raises(ValueError, match=r"writer has factor b of q in shape"):
        check_adapter(tiny("tiny_llama31"), adapter)
    with pytest.raises(ValueError, match="48 numbers"):
        check_adapter(model, adapter_lib.empty(48))
    wrong = adapter._replace(primer=jnp.array([1_000], jnp.int32))
    with pytest.raises(ValueError, match="primer has token id 1000"):
        check_adapter(model, wrong)


def test_a_primer_counts_towards_the_models_context(tiny):
    model = tiny("tiny_qwen2")
    long = np.full(model.config.max_positions - 4, 7)
    adapter = adapter_lib.empty(model.config.dim)._replace(primer=jnp.asarray(long, jnp.int32))
    with pytest.raises(ValueError, match="spans"):
        build_packets(model, adapter, [list(range(9))])


def test_the_primer_needs_no_training_and_is_chosen_where_none_is_shipped(byte_model, tmp_path):
    model = models.load(str(byte_model), "float32")
    chosen = adapters.choose(model, template="completion")
    assert chosen.num_tokens == 0 and chosen.writer is None and chosen.primer_length > 100
    assert adapters.choose(model, "none") is None
    with pytest.raises(FileNotFoundError, match=r"no adapter .*absent.*primer, none"):
        adapters.choose(model, str(tmp_path / "absent"))
    text = model.tokenizer.decode(np.asarray(chosen.primer).tolist())
    assert "Answer the question" in text and "RIVERSIDE COMMUNITY WORKSHOP" in text


def test_shipped_adapters_are_adapters():
    for name, path in adapters.shipped().items():
        loaded = adapter_lib.load_adapter(path)
        assert adapter_lib.describe(loaded) != "no parts", name
        assert pathlib.Path(path).is_dir()
