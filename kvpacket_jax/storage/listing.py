"""What a store holds, as a table and a sentence, and what was taken out of it."""

from collections.abc import Sequence

import rich.table
from rich.text import Text

from kvpacket_jax import compress
from kvpacket_jax.runtime import format
from kvpacket_jax.storage.contents import UNSIGNED, StoredDocument
from kvpacket_jax.storage.provenance import UNCOMPRESSED
from kvpacket_jax.storage.removal import Removed

COMES_FIRST = " (where it comes first)"


def table(documents: Sequence[StoredDocument]) -> rich.table.Table:
    """A row for each document; columns of what differs, or is not as usual, where there is any.

    Of documents' packets for when they come first only those that are not whole have one.
    """
    documents = [d for d in documents if d.problem or not d.is_opening]
    columns = ["id", "model", "adapter", "dtype"]
    columns += ["template"] if len({d.names.template for d in documents}) > 1 else []
    columns += ["compressor"] if any(d.compressor != UNCOMPRESSED for d in documents) else []
    columns += ["problem"] if any(d.problem for d in documents) else []
    rows = format.table(tuple(columns), "tokens", "bytes")
    for document in documents:
        names = document.names
        document = document._replace(id=document.id + (COMES_FIRST if document.is_opening else ""))
        shown = document._asdict() | {"model": names.shown_model, "adapter": names.shown_adapter}
        shown["template"] = names.template or "?"
        if document.compressor != UNCOMPRESSED:
            shown["compressor"] = compress.shortened(document.compressor)
        texts = [shown[column] for column in columns]
        numbers = (f"{document.tokens:,}", f"{document.num_bytes:,}")
        # Text: brackets in an id are no markup.
        rows.add_row(*map(Text, texts), *("-" if document.problem else n for n in numbers))
    return rows


def total(
    documents: Sequence[StoredDocument],
    superseded: Removed = Removed(0, 0, 0),
    verified: bool = False,
) -> str:
    """How many documents, packets, tokens and bytes; how many are not whole.

    Args:
      superseded: packets that no document refers to.
      verified: whether every byte was read, which is said where all are whole.
    """
    preambles = [d for d in documents if d.is_preamble]
    every = [d for d in documents if not d.is_preamble]
    documents = [d for d in every if not d.is_opening]
    if not documents:
        return "No documents."
    packets = _packets(documents)
    tokens, num_bytes = (sum(getattr(d, name) for d in packets) for name in ("tokens", "num_bytes"))
    builds = len({d.build for d in documents})
    text = (
        f"Documents: {len({d.id for d in documents}):,}"
        f"{f', built in {builds} ways' if builds > 1 else ''}. Packets: {len(packets):,}, of "
        f"{tokens:,} tokens, {format.si(num_bytes)}B."
    )
    if first := _packets([d for d in every if d.is_opening]):
        num_bytes = sum(d.num_bytes for d in first)
        text += f" For documents that come first: {len(first):,} more, {format.si(num_bytes)}B."
    if superseded.packets:
        text += (
            f" {_counted(superseded.packets, 'more packet')}, {format.si(superseded.num_bytes)}B, "
            "that no document refers to: launch.store prune removes them."
        )
    if changed := _of_several_texts(documents):
        text += (
            f" Builds have different texts of {', '.join(changed[:5])}"
            f"{f' and {len(changed) - 5:,} more' if len(changed) > 5 else ''}: an answer goes by "
            "the build asked for, and launch.build_packets renews one at a time."
        )
    unsigned = sum(1 for d in every if d.problem == UNSIGNED)
    if bad := sum(1 for d in every if d.problem) - unsigned:
        text += (
            f" {bad:,} missing or damaged: launch.build_packets with the same input and flags "
            "mends them."
        )
    if unsigned:
        text += (
            f" {unsigned:,} not signed with the key: launch.build_packets with it, and the same "
            "input and flags, builds them again."
        )
    if preambles and not bad + unsigned:
        text += (
            f" The preamble is {preambles[0].problem}: no question is answered without it. "
            "launch.build_packets with the same input and flags mends it."
        )
    if verified and not bad + unsigned and not preambles:
        text += " Every byte is as it was written."
    return text


def _packets(documents: Sequence[StoredDocument]) -> list[StoredDocument]:
    """Those that are whole, one for each packet: documents with the same text share it."""
    return list({d.packet: d for d in documents if not d.problem}.values())


def _of_several_texts(documents: Sequence[StoredDocument]) -> list[str]:
    """Ids of documents that differ between builds which read the same text alike."""
    texts: dict[tuple[str, str], set[str]] = {}
    for d in documents:
        if not d.problem:
            texts.setdefault((d.id, d.read_by), set()).add(d.text)
    return sorted({id for (id, _), found in texts.items() if len(found) > 1})


def removed(what: Removed) -> str:
    """What was taken out of a store."""
    documents = f"{_counted(what.documents, 'document')} and " if what.documents else ""
    packets = _counted(what.packets, "packet")
    return f"Removed {documents}{packets} that no document refers to, {format.si(what.num_bytes)}B."


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
