"""kv_distill: a trained scorer says which tokens are kept (arXiv 2503.10337)."""

import dataclasses

from kvpacket_jax.compress.base import Compressor


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVDistill(Compressor):
    """The scores are the adapter's distiller's (packets/distiller.py), the same for all heads.

    It was trained for a few shares (`keeps` of configs/train.py:distill) and takes any.
    """

    name = "kv_distill"
    learned = True

    def __post_init__(self):
        super().__post_init__()
        if not self.keep_soft_tokens:
            raise ValueError("kv_distill always keeps soft tokens: its distiller learned it so.")
