"""warmup(): every program that requests within given limits run, made before the first comes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kvpacket_jax.packets import compose, generate, prefill
from kvpacket_jax.packets.buckets import Buckets
from models import LanguageModel, kv_cache


def warmup(
    model: LanguageModel,
    max_context: int,
    max_query: int,
    new_tokens: int | None = None,
    max_packet: int | None = None,
    buckets: Buckets = Buckets(),
    stop_ids: Sequence[int] | None = None,
    on_program: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[str]:
    """Compiles what `compose`, `prefill` and `generate` need for one query at a time.

    Nothing is run and no cache is allocated: programs are compiled from shapes, into the caches
    of the very functions that requests call.

    Args:
      max_context: positions of the longest context, the preamble's included.
      max_query: tokens of the longest query.
      new_tokens: the most that are decoded, those of the usual tail if None; 0 leaves decoding out.
      max_packet: positions of the longest packet, `max_context` if None.
      stop_ids: as given to `generate`.
      on_program: called before each program with its name, how many are made, how many there are.

    Returns:
      The programs' names.

    Raises:
      ValueError: limits beyond the model's context.
    """
    new_tokens = buckets.new_tokens if new_tokens is None else new_tokens
    model.check_length(max_context + max_query + new_tokens)
    packets = packet_sizes(min(max_packet or max_context, max_context), buckets)
    contexts = context_sizes(max_context, max_packet or max_context, buckets)
    queries = sorted({buckets.query(n) for n in range(1, max_query + 1)})
    programs = [
        *_composition(model, packets, contexts),
        *_reading(model, contexts, queries, new_tokens, buckets, stop_ids),
    ]
    for i, (name, compile_one) in enumerate(programs):
        on_program(name, i, len(programs))
        compile_one()
    return [name for name, _ in programs]


def packet_sizes(max_packet: int, buckets: Buckets) -> list[int]:
    """Slots that packets of up to `max_packet` positions have."""
    return sorted({buckets.packet(n) for n in range(1, max_packet + 1)})


def context_sizes(max_context: int, max_packet: int, buckets: Buckets) -> list[int]:
    """Slots that composed contexts of up to `max_context` positions have.

    More than their positions ask for: the padding of the last packet needs room too.
    """
    last = range(1, min(max_packet, max_context) + 1)
    longest = max(max_context - n + buckets.packet(n) for n in last)
    return sorted({buckets.context(n) for n in range(1, longest + 1)})


# Each gives (name, what compiles it), from the shapes and dtypes that requests pass.


def _composition(model: LanguageModel, packets, contexts):
    config = model.config
    for S in contexts:
        yield f"empty context of {S}", _ahead(compose._empty, config, S, model.dtype)
        for P in (p for p in packets if p <= S):
            args = config, _cache(model, S), _cache(model, P), _int32(), _int32()
            yield f"packet of {P} into a context of {S}", _ahead(compose._place, *args)


def _reading(model: LanguageModel, contexts, queries, new_tokens: int, buckets, stop_ids):
    tails = {T: {buckets.tail(T, n) for n in range(new_tokens + 1)} for T in queries}
    for S in contexts:
        context = (_cache(model, S),)
        for T, slots in ((T, slots) for T, sizes in tails.items() for slots in sorted(sizes)):
            args = model.module, model.params, context, _int32(1, T), _int32(1), _int32()
            name = f"query of {T} over a context of {S}, tail of {slots}"
            yield name, _ahead(prefill.prefill_program, *args, slots=slots)
    if new_tokens == 0:
        return
    stops = _int32(*generate.stop_array(model, stop_ids).shape)
    done = jax.ShapeDtypeStruct((1,), bool)
    logits = jax.ShapeDtypeStruct((1, model.config.vocab_size), jnp.float32)
    yield "first token", _ahead(generate._first, logits, stops, done)
    for S in contexts:
        for slots in sorted(set().union(*tails.values())):
            args = model.module, model.params, (_cache(model, S),), _cache(model, slots)
            args = *args, _int32(1), _int32(1), _int32(), done, stops
            name = f"decoding over a context of {S}, tail of {slots}"
            yield name, _ahead(generate._decode, *args)


def _ahead(jitted, *args, **static) -> Callable[[], None]:
    # The executable lands where a call with such arguments looks for it (tested).
    return lambda: jitted.lower(*args, **static).compile()


def _cache(model: LanguageModel, slots: int):
    return jax.eval_shape(lambda: kv_cache.init(model.config, 1, slots, model.dtype))


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
