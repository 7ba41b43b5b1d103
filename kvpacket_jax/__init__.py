"""KV Packet in JAX/Flax: reuse the key-value caches of documents without recomputing them."""
