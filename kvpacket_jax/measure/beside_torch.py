"""The same request in PyTorch's transformers, where torch is installed; it is no requirement.

A model's own files are read once more by transformers, and run on the same cores with the same
numbers of tokens; `Pair` holds both sides' times, interleaved. Not the same to the last operation:
of a document read alone we keep the cache, so that XLA leaves out the last layer's attention and
MLP, a few percent, and transformers' cache is its default one, which grows by a copy.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

import models
from kvpacket_jax.measure import timing
from kvpacket_jax.measure.cost import ALONE, FULL
from kvpacket_jax.measure.decoding import first_chunk
from kvpacket_jax.measure.request import Entry, first_token
from kvpacket_jax.methods import Request
from kvpacket_jax.packets.buckets import CHUNK
from kvpacket_jax.packets.packet import build_packets
from models import LanguageModel
from models.sources import random_models

DOCUMENT = "a document, read alone"
TOKEN = "a token after the first"


class Pair(NamedTuple):
    """Seconds of the same work here and in transformers; each run of both, in order."""

    work: str
    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of ours ÷ theirs in the same round."""
        return timing.ratio(self.ours_s, self.theirs_s)


class Peer:
    """A model in transformers as it comes: its own attention and cache, the last row's logits."""

    def __init__(
        self,
        model: LanguageModel,
        source: str,
        cache_dir: str | os.PathLike | None,
        threads: int,
    ):
        """Reads the files of `source`, which `model` came from, once more."""
        import torch
        import transformers

        cache_dir = pathlib.Path(cache_dir) if cache_dir else models.default_cache_dir()
        dtype = str(model.dtype)
        self._torch, self._transformers = torch, transformers
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            models.find(source, dtype, cache_dir), dtype=getattr(torch, dtype)
        ).eval()
        self.name = f"transformers {transformers.__version__} with torch {torch.__version__}"

    def cache(self, slots: int):
        """A cache of so many tokens, of random numbers: what they are changes no time."""
        config, torch = self._model.config, self._torch
        cache = self._transformers.DynamicCache(config=config)
        head_dim = getattr(config, "head_dim", None)
        shape = (
            1,
            config.num_key_value_heads,
            slots,
            head_dim or config.hidden_size // config.num_attention_heads,
        )
        for layer in range(config.num_hidden_layers if slots else 0):
            k, v = (torch.randn(shape).to(self._model.dtype) for _ in range(2))
            cache.update(k, v, layer)
        return cache

    def rewind(self, cache, slots: int) -> None:
        """Takes what came after the first `slots` tokens out of the cache again."""
        if grown := cache.get_seq_length() - slots:
            cache.crop(-grown)

    def read(self, ids: Sequence[int], cache):
        """The last token's logits, float32 `[V]`; the tokens' keys and values go into `cache`."""
        with self._torch.inference_mode():
            given = self._torch.tensor([list(ids)])
            out = self._model(
                input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            return out.logits[0, -1].float().numpy()

    def build(self, ids: Sequence[int]):
        """A document's cache, without any logits."""
        cache = self.cache(0)
        with self._torch.inference_mode():
            self._model.model(
                input_ids=self._torch.tensor([list(ids)]), past_key_values=cache, use_cache=True
            )
        return cache

    def decode(self, logits, cache, count: int) -> list[int]:
        """So many greedy tokens, of which the first is already known by its logits."""
        tokens = []
        for _ in range(count):
            token = int(logits.argmax())
            tokens.append(token)
            logits = self.read([token], cache)
        return tokens


def available(model: LanguageModel, source: str) -> bool:
    """Whether there are torch and files of the model, which runs whole on one CPU."""
    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return False
    has_files = not random_models.is_random(source)
    return has_files and model.config.mesh is None and not model.config.shared_layers


class _Work(NamedTuple):
    """The same work on both sides, and what is done before it outside the clock."""

    ours: Callable
    theirs: Callable
    before_ours: Callable | None = None
    before_theirs: Callable | None = None
    tokens: int = 1  # that share one run's time


def compare(
    model: LanguageModel, peer: Peer, entries: Mapping[str, Entry], request: Request, runs: int
) -> list[Pair]:
    """Times the same work on both sides, interleaved in this process, after a warm-up.

    Args:
      entries: by the names of rows. `ALONE` is compared, decoding after it, and `FULL` where it is
        among them.
    """
    works = _works(model, peer, entries, request)
    calls, before = {}, {}
    for name, work in works.items():
        sides = {"ours": work.ours, "theirs": work.theirs}
        calls |= {(name, side): call for side, call in sides.items()}
        hooks = {"ours": work.before_ours, "theirs": work.before_theirs}
        before |= {(name, side): hook for side, hook in hooks.items() if hook}
    seconds = timing.interleaved(calls, runs, before=before)
    seconds = {key: tuple(s / works[key[0]].tokens for s in of) for key, of in seconds.items()}
    return [Pair(name, seconds[name, "ours"], seconds[name, "theirs"]) for name in works]


def _works(
    model: LanguageModel, peer: Peer, entries: Mapping[str, Entry], request: Request
) -> dict[str, _Work]:
    alone, (document, *_), query = entries[ALONE], request.documents, request.query
    slots = alone.method.prepare(model, alone.stored, request).query_start
    chunk, cache, last = first_chunk(model, alone, request), peer.cache(slots), {}

    def rewind():
        peer.rewind(cache, slots)

    def read_query():
        rewind()
        last["logits"] = peer.read(query, cache)

    works = {
        DOCUMENT: _Work(
            lambda: build_packets(model, None, [document]),
            lambda: peer.build(document),
        ),
        ALONE: _Work(
            lambda: np.asarray(first_token(model, alone, request).logits),
            lambda: peer.read(query, cache),
            before_theirs=rewind,
        ),
        TOKEN: _Work(
            chunk.call,
            lambda: peer.decode(last["logits"], cache, CHUNK),
            before_ours=chunk.before,
            before_theirs=read_query,
            tokens=CHUNK,
        ),
    }
    if FULL in entries:
        preamble = peer.cache(len(request.preamble))
        ids = [t for part in (*request.documents, query) for t in part]
        works[FULL] = _Work(
            lambda: np.asarray(first_token(model, entries[FULL].loaded(), request).logits),
            lambda: peer.read(ids, preamble),
            before_theirs=lambda: peer.rewind(preamble, len(request.preamble)),
        )
    return works
