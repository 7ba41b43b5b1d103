"""No request compiles anything once warmed up, and few programs serve all lengths."""

import random
import types

import jax
import numpy as np
import pytest

import models
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.compose import context_slots
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import Manifest, Packet
from kvpacket_jax.packets.prefill import prefill
from kvpacket_jax.serve.warmup import context_sizes, warmup
from models.config import ModelConfig
from models.kv_cache import KVCache
from models.rope import Rope
from models.transformer import Transformer, init_params

CONFIG = ModelConfig(
    family="llama",
    vocab_size=32,
    dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
    norm_eps=1e-5,
    max_positions=32768,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    rope=Rope(10_000.0),
)
LIMITS = {"max_context": 10 * 2000 + 20, "max_query": 200, "new_tokens": 17, "max_packet": 2000}


@pytest.fixture(scope="module")
def model():
    params = init_params(CONFIG, jax.random.key(0))
    return models.LanguageModel("tiny", CONFIG, Transformer(CONFIG), params, None, "f" * 64)


@pytest.fixture
def compiled():
    """Names of the programs compiled while a test runs; each test starts with none made."""
    jax.clear_caches()
    names = []

    def listen(event, seconds, fun_name="?", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def packet(length: int, tag: str) -> Packet:
    """A packet of random arrays, made without jax."""
    slots = Buckets().packet(length)
    shape = (1, slots, CONFIG.num_kv_heads, CONFIG.head_dim)
    draw = np.random.default_rng(length).standard_normal
    layers = lambda: tuple(draw(shape, np.float32) for _ in range(CONFIG.num_layers))  # noqa: E731
    place = np.arange(slots, dtype=np.int32)[None]
    cache = KVCache(layers(), layers(), place, place < length)
    provenance = Manifest(tag, "none", "none", "none", "float32", CONFIG.rope, ())
    return Packet(cache, length, provenance)


def requests(model, number: int):
    """Seeded requests: a preamble, 1 to 10 documents of 20 to 2,000 tokens, a query of 5 to 200."""
    rng = random.Random(0)
    preamble = packet(20, model.fingerprint)
    for _ in range(number):
        lengths = [rng.randint(20, 2000) for _ in range(rng.randint(1, 10))]
        stored = [preamble, *(packet(n, model.fingerprint) for n in lengths)]
        query = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(5, 200))]
        yield stored, Request([], [], query)


def answer(model, stored, request) -> list[int]:
    """What the programs do for a request with kv_packet: compose, prefill, decode."""
    new_tokens = LIMITS["new_tokens"]
    prepared = METHODS["kv_packet"]().prepare(model, stored, request, new_tokens)
    ready = prefill(model, prepared.context, [request.query], prepared.query_start, new_tokens)
    return generate(model, prepared.context, ready, new_tokens, stop_ids=())[0]


def test_few_programs_serve_all_requests_and_warmup_makes_them(model, compiled):
    names = warmup(model, **LIMITS, stop_ids=())
    # What warmup lists is all it compiles, and all that 300 requests need.
    assert len(names) == len(set(names)) == len(compiled) <= 150, (len(names), len(compiled))
    compiled.clear()
    for stored, request in requests(model, 300):
        assert len(answer(model, stored, request)) == LIMITS["new_tokens"]
    assert compiled == []


def test_a_request_that_was_not_warmed_up_is_noticed(model, compiled):
    # The listener above is no proof of anything unless it hears what does compile.
    stored, request = next(requests(model, 1))
    answer(model, stored, request)
    assert {"_empty", "place", "prefill_program", "_first", "_decode"} <= {*map(plain, compiled)}


def plain(name: str) -> str:
    return name.removeprefix("jit(").removesuffix(")")


@pytest.mark.parametrize("max_context", [1, 9, 40, 70])
@pytest.mark.parametrize("max_packet", [1, 4, 5, 33])
def test_sizes_are_exactly_those_that_occur(max_context, max_packet):
    buckets = Buckets(min_packet=4, contexts=(8,), soft_tokens=0)
    met = set()
    for last in range(1, min(max_packet, max_context) + 1):
        for before in range(max_context - last + 1):  # its padding goes past the context's end
            stub = [sized(1, buckets)] * before + [sized(last, buckets)]
            met.add(context_slots(stub, buckets))
    assert set(context_sizes(max_context, max_packet, buckets)) == met


def sized(length: int, buckets: Buckets):
    """What context_slots looks at in a packet."""
    slots = buckets.packet(length)
    return types.SimpleNamespace(length=length, cache=types.SimpleNamespace(num_slots=slots))


def test_limits_beyond_the_models_context_are_refused(model):
    with pytest.raises(ValueError, match="context of tiny is 32768"):
        warmup(model, max_context=32768, max_query=1)
