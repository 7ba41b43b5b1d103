"""Packets on disk, and answers from them: `Store` and `load_model`."""

from kvpacket_jax.serve.front import Added, Answer, Store, load_model

__all__ = ["Added", "Answer", "Store", "load_model"]
