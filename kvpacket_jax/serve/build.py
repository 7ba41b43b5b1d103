"""A corpus of documents becomes packets on disk: the plan, and building what is missing.

The plan is a function of the documents and the shard, not of what is there already: a packet's last
bits depend on the batch it was computed in, and the same bytes come out after any interruption.
"""

import array
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from kvpacket_jax.compress import Compressor
from kvpacket_jax.data.examples import INSTRUCTION
from kvpacket_jax.packets import adapter as adapter_lib
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.buckets import Buckets
from kvpacket_jax.packets.packet import (
    BATCH_TOKENS,
    FIRST,
    Batch,
    Packet,
    Provenance,
    build_batch,
    check_adapter,
    check_compressor,
    check_document,
    check_kept,
    plan_batches,
    read_primer,
)
from kvpacket_jax.serve import corpus, primers
from kvpacket_jax.serve.corpus import Document
from kvpacket_jax.serve.identity import (
    Item,
    Wording,
    document_provenance,
    encode,
    names_of,
    opening_provenance,
    preamble_item,
)
from kvpacket_jax.serve.primers import FromCorpus
from kvpacket_jax.storage import packet_file, store
from kvpacket_jax.storage.packet_file import (
    DamagedFile,
    Entry,
    packet_name,
    packet_path,
)
from kvpacket_jax.storage.provenance import Names
from models import LanguageModel
from models.identity import digest

WRITERS = 8  # threads: writing waits for the disk, and goes on while the next batch is computed


Primer = tuple[Sequence[int], ...]  # token ids of its parts: the preamble, then the documents


class Part(NamedTuple):
    """What is built with one adapter after one primer: the preamble bare, documents wrapped."""

    adapter: Adapter | None
    provenance: Provenance
    names: Names
    items: list[Item]
    batches: list[Batch]
    primer: Primer = ()  # chosen from the corpus, in place of the adapter's own
    compressor: Compressor | None = None

    @property
    def is_of_openings(self) -> bool:
        return self.provenance.place == FIRST


class Progress(NamedTuple):
    """Of one batch that is on disk."""

    packets: int
    tokens: int
    built: int  # packets of them that were written; the others were there


def plan(
    model: LanguageModel,
    adapter: Adapter | None,
    wording: Wording,
    documents: Sequence[Document],
    shard: tuple[int, int] = (0, 1),
    buckets: Buckets = Buckets(),
    batch_tokens: int = BATCH_TOKENS,
    on_bad: Callable[[str], None] = corpus.refuse,
    adapter_name: str | None = None,
    choice: FromCorpus | None = None,
    compressor: Compressor | None = None,
    openings: bool = True,
) -> list[Part]:
    """What documents need, in batches: a function of the arguments alone.

    Args:
      adapter, adapter_name, choice: the Maker of the documents' packets. A choice is made from all
        the documents that can be used, whatever the shard.
      compressor: of the documents' packets; the preamble is never compressed.
      shard: (i, n): the i-th of n parts, from 0. A packet belongs to one of them by its name, so
        that equal texts meet, wherever they stand in the file.
      on_bad: called with what is wrong with a document; where it returns, it is left out.
      openings: each document gets a second packet, for requests that it comes first in; bare
        documents get none.

    Returns the preamble's part, the documents', and with `openings` that of these, the last.

    Raises:
      ValueError: before anything is computed.
    """
    check_adapter(model, adapter)
    check_compressor(adapter, compressor)
    provenance, item = preamble_item(model, wording)
    documents_by = document_provenance(model, adapter, wording, choice, compressor)

    def own(item: Item) -> bool:
        return int(item.name[:16], 16) % shard[1] == shard[0]

    def part(adapter, provenance, adapter_name, items: list[Item], primer: Primer = ()) -> Part:
        lengths = [_length(adapter, item.tokens) for item in items]
        names = names_of(model, adapter, wording, adapter_name)
        batches = plan_batches(lengths, buckets.build, batch_tokens)
        return Part(adapter, provenance, names, items, batches, primer)

    # Other shards' documents may prime this one's.
    keep = own if choice is None else lambda item: True

    def check(tokens, what: str) -> None:
        check_document(model, adapter, tokens, what, compressor)
        check_kept(adapter, compressor, tokens, what)

    items = _items(model, adapter, wording, documents, documents_by, check, keep, on_bad)
    groups: list[tuple[Primer, list[Item]]] = [((), items)]
    if choice is not None:
        preamble = encode(model, wording._replace(instruction=INSTRUCTION)).preamble
        groups = _by_primer(model, adapter, preamble, choice, items, own, documents_by, on_bad)
    bare = part(None, provenance, None, [item] if item and own(item) else [])
    parts = [part(adapter, documents_by, adapter_name, g, primer) for primer, g in groups]
    if openings and adapter is not None:
        preamble = encode(model, wording).preamble
        alone = adapter_lib.opening(model.config.dim, preamble, adapter.distiller)
        provenance = opening_provenance(model, documents_by, wording)
        first = [i for _, g in groups for i in g]
        first = [i._replace(name=packet_name(provenance, i.tokens, len(i.tokens))) for i in first]
        parts.append(part(alone, provenance, adapter_name, first))
    return [bare, *(p._replace(compressor=compressor) for p in parts)]


def _length(adapter: Adapter | None, tokens: Sequence[int]) -> int:
    return len(tokens) + (adapter.num_tokens if adapter else 0)


def _items(
    model,
    adapter,
    wording: Wording,
    documents,
    provenance,
    check: Callable,
    keep: Callable[[Item], bool],
    on_bad,
) -> list[Item]:
    """An item for each text to be kept, named without regard to a primer chosen for it."""
    items: dict[str, Item] = {}
    usable = 0
    for document in documents:
        try:
            tokens = model.tokenizer.encode(wording.template.document_text(document.text))
            check(tokens, f"document {document.id!r}")
        except ValueError as error:
            on_bad(f"{document.place}: {error}")
            continue
        usable += 1
        compact = array.array("i", tokens)  # a list of Python's integers is ten times as large
        item = Item(packet_name(provenance, tokens, _length(adapter, tokens)), compact, [])
        if keep(item):
            items.setdefault(item.name, item).ids.append(document.id)
    if not usable:
        raise ValueError("There is no document that can be used: nothing was built.")
    return list(items.values())


def _by_primer(
    model, adapter: Adapter, preamble, choice, items, own, provenance, on_bad
) -> list[tuple[Primer, list[Item]]]:
    """A shard's items by the primers chosen for them, each with the name of its packet."""
    choose = primers.chooser(choice, [item.tokens for item in items])
    shortened = [primers.cut(item.tokens) for item in items]
    groups: dict[tuple[int, ...], list[Item]] = {}
    for i, item in enumerate(items):
        if own(item):
            groups.setdefault(choose(i), []).append(item)
    by_primer = []
    for chosen, members in groups.items():
        primer = (preamble, *(shortened[i] for i in chosen))
        packets_by = _packets_by(provenance, primer)
        named = []
        for item in members:
            length = _length(adapter, item.tokens)
            try:
                model.check_length(sum(map(len, primer)) + length)
            except ValueError as error:
                on_bad(f"document {item.ids[0]!r} after its primer, {choice.label}: {error}")
                continue
            name = packet_name(packets_by, item.tokens, length)
            named.append(item._replace(name=name))
        if named:
            by_primer.append((primer, named))
    return by_primer


def _packets_by(provenance: Provenance, primer: Primer) -> Provenance:
    """The provenance of the packets of a part: that of its documents, and the primer chosen."""
    if not primer:
        return provenance
    return dataclasses.replace(provenance, primer=digest([*itertools.chain(*primer)]))


def _adapter_of(part: Part) -> Adapter | None:
    """A part's adapter, with the primer chosen for it."""
    if not part.primer:
        return part.adapter
    return part.adapter._replace(primer=np.fromiter(itertools.chain(*part.primer), np.int32))


def _present(
    model: LanguageModel,
    folder: pathlib.Path,
    vouchers: store.Vouchers,
    item: Item,
    on_damaged: Callable[[str], None] = lambda text: None,
) -> Entry | None:
    """The entry of an item's packet if it is there and the one that was written; else None."""
    try:
        entry = Entry(item.name, packet_file.verify(folder, item.name, model))
        vouchers.check(item.ids or [None], entry)
        return entry
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        on_damaged(f"{error.found} It is built anew.")
        return None


def _write(
    writer: store.Writer,
    look: Callable[[Item], Entry | None],
    provenance: Provenance,
    item: Item,
    present: Entry | None,
    packet: Packet,
) -> None:
    if present is None:
        try:
            prepared = writer.prepare(packet)
        except ValueError as error:
            named = ", ".join(map(repr, item.ids[:3])) or "the preamble"
            raise ValueError(f"{named}: {error}") from error
    with writer.alone():
        path = packet_path(writer.folder, item.name)
        if present is not None and not path.exists():
            raise FileNotFoundError(
                f"{path} was there and is not any more: it was removed while this build ran. Run "
                "the build again."
            )
        # Another process may have written it while it was computed here: its last bits may be
        # others, and its documents point to it.
        present = present or look(item) or writer.place(prepared)
        for id in item.ids or [None]:
            writer.document(provenance, id, present)


def _computed(model, part: Part, buckets: Buckets, look) -> Iterator[tuple[list, list, list]]:
    """Of each batch its items, their entries by `look`, and packets; Nones where all are there."""
    packets_by = _packets_by(part.provenance, part.primer)
    adapter = _adapter_of(part)
    primer = None  # read once for the part, when its first batch is computed
    for batch in part.batches:
        items = [part.items[i] for i in batch.members]
        present = look(items)
        packets: list = [None] * len(items)
        if None in present:
            if primer is None:
                primer = read_primer(model, adapter, buckets if part.primer else None)
            tokens = [item.tokens for item in items]
            given = model, adapter, batch.rows, tokens, packets_by, buckets, primer
            packets = build_batch(*given, part.compressor)
        yield items, present, packets


def build(
    model: LanguageModel,
    parts: Sequence[Part],
    folder: pathlib.Path,
    buckets: Buckets = Buckets(),
    on_batch: Callable[[Progress], None] = lambda progress: None,
    on_damaged: Callable[[str], None] = lambda text: None,
    key: bytes | None = None,
) -> set[str]:
    """Writes what a plan asks for and `folder` lacks; what is there is verified and kept.

    A batch of which anything is missing or damaged is computed whole. Several processes may build
    into one folder.

    Args:
      on_batch: called when a batch is on disk.
      on_damaged: called with a message for each damaged packet, which is built again.
      key: signs the documents' entries; packets that none signed with it vouches for are built.

    Returns the names of the packets that were written.

    Raises:
      ValueError: packets of numbers that are not finite; a store that another key signed, or one
        that is signed where `key` is None, before anything is computed.
      OSError: the disk is full or may not be written, or packets were removed meanwhile; what was
        written stays.
    """

    def wait() -> None:
        if under_way:
            progress, futures = under_way.pop()
            for future in futures:
                future.result()
            on_batch(progress)

    store.check_key(folder, key)
    written: set[str] = set()
    under_way: list[tuple[Progress, list[Future]]] = []  # one batch, at most
    with store.writing(folder, key) as writer, ThreadPoolExecutor(WRITERS) as pool:
        for part in parts:
            writer.provenance(part.provenance, part.names)
            vouchers = store.Vouchers(folder, part.provenance, key)
            present_of = functools.partial(_present, model, folder, vouchers)
            aloud = functools.partial(present_of, on_damaged=on_damaged)
            look = lambda items, of=aloud: list(pool.map(of, items))  # noqa: E731
            for items, present, packets in _computed(model, part, buckets, look):
                written.update(i.name for i, p in zip(items, present, strict=True) if p is None)
                wait()
                futures = [
                    pool.submit(_write, writer, present_of, part.provenance, item, entry, packet)
                    for item, entry, packet in zip(items, present, packets, strict=True)
                ]
                count = sum(len(item.tokens) for item in items)
                progress = Progress(len(items), count, present.count(None))
                under_way.append((progress, futures))
        wait()
    return written
