"""KV Packet in JAX/Flax: reuse the key-value caches of documents without recomputing them.

`load_model` and `Store` are all that answering needs (kvpacket_jax/serve/front.py).
"""

__all__ = ["Added", "Answer", "Store", "load_model"]


def __getattr__(name: str):
    # On first use: `import kvpacket_jax` alone loads no jax.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvpacket_jax import serve

    return getattr(serve, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
