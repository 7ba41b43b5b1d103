"""Few programs serve requests of all lengths, whatever the combinations of lengths."""

import random

import jax
import numpy as np
import pytest

import models
from kvpacket_jax.methods import METHODS, Request
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.generate import generate
from kvpacket_jax.packets.packet import Manifest, Packet
from kvpacket_jax.packets.prefill import prefill
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
NEW_TOKENS = 17


@pytest.fixture(scope="module")
def model():
    params = init_params(CONFIG, jax.random.key(0))
    return models.LanguageModel("tiny", CONFIG, Transformer(CONFIG), params, None, "f" * 64)


@pytest.fixture
def compiled():
    """Names of the programs compiled while a test runs, which starts with none."""
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
    """What the programs do for a request with kv_packet: lay into pages, prefill, decode."""
    method = METHODS["kv_packet"]()
    prepared = method.prepare(model, method.arrange(model, stored), request, NEW_TOKENS)
    ready = prefill(model, prepared.context, [request.query], prepared.query_start, NEW_TOKENS)
    return generate(model, prepared.context, ready, NEW_TOKENS, stop_ids=())[0]


@pytest.mark.parametrize(
    ("number", "at_most"), [(100, 100), pytest.param(300, 150, marks=pytest.mark.slow)]
)
def test_few_programs_serve_all_requests(model, compiled, number, at_most):
    made = list(requests(model, number))
    for stored, request in made:
        assert len(answer(model, stored, request)) == NEW_TOKENS
    assert {"_empty", "_put", "prefill_program", "_first", "_decode"} <= {*map(plain, compiled)}
    assert len(compiled) <= at_most
    warm = len(compiled)
    for (preamble, *documents), request in made[::-5]:  # other packets in other places
        answer(model, [preamble, *documents[::-1]], request)
    assert len(compiled) == warm, "what has the sizes of before compiles nothing"


def test_documents_read_in_full_share_the_programs_of_questions(model, compiled):
    """Whatever their length: each is read by a program of its own, and one answers for all."""
    preamble, read = packet(20, model.fingerprint), METHODS["full_recompute"]().shared_context
    for n in (300, 350, 420, 500):
        context, start = read(model, [preamble], Request([], [[1] * n], []))[:2]
        ready = prefill(model, context, [[2] * 9], start, NEW_TOKENS)
        assert len(generate(model, context, ready, NEW_TOKENS, stop_ids=())[0]) == NEW_TOKENS
    names = list(map(plain, compiled))
    assert names.count("_decode") == 1 and names.count("prefill_program") == 4 + 1


def plain(name: str) -> str:
    return name.removeprefix("jit(").removesuffix(")")
