"""Packets are built and kept, and answer questions: `Store` and `load_model`."""

from kvpacket_jax.serve.front import Added, Answer, Store, load_model

__all__ = ["Added", "Answer", "Store", "load_model"]
