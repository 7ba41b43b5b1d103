"""The front door from Python: a store of documents, and answers from them.

import kvpacket_jax as kvp

model = kvp.load_model("qwen2.5-coder-0.5b")
store = kvp.Store("packets", model)
store.add({"ferry": "The ferry to Lune leaves at 7:40 from pier 3.", "bus": "…"})
print(store.ask("When does the ferry to Lune leave?", ["ferry", "bus"]).text)
"""

import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import models
from kvpacket_jax import compress as compressors
from kvpacket_jax.doubt import RECOMPUTE_BELOW
from kvpacket_jax.packets.adapter import Adapter
from kvpacket_jax.packets.packet import check_compressor
from kvpacket_jax.runtime import programs
from kvpacket_jax.serve import build, corpus, found, identity, primers, session
from kvpacket_jax.serve.resident import RESIDENT_BYTES, Resident
from kvpacket_jax.storage import removal, store, store_key
from models import LanguageModel


class Added(NamedTuple):
    """Ids of documents by what `Store.add` did with them."""

    built: list[str]  # their packets were computed
    present: list[str]  # their packets were there already


class Answer(NamedTuple):
    """An answer, the ids of the documents it was given from, and how sure the model was of it."""

    text: str
    documents: tuple[str, ...]  # in the order they were read in
    confidence: float  # the probability of this answer's least likely token
    reread: bool  # the one from packets was in doubt: given from the documents read in full


def load_model(
    source: str,
    dtype: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    mesh: str | None = None,
    shared_layers: str = "",
) -> LanguageModel:
    """Loads a model that reads text.

    Args:
      source: a demo model's name ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m"), a
        Hugging Face folder or hub id, or a `.gguf` file.
      dtype: of the weights, and so of packets: "float32", "bfloat16", or "auto", the faster one on
        this machine.
      cache_dir: where demo models and conversions are kept; the user's cache folder if None.
      mesh: devices to lie on, as "model:4"; one device if None.
      shared_layers: "19:23", layers that take the attention weights of the one before them, 18, and
        cache no keys; another model, which may answer worse. "" for none.

    What is compiled for it is kept beside the models for later processes, unless jax keeps programs
    somewhere already (JAX_COMPILATION_CACHE_DIR).

    Raises:
      ValueError, FileNotFoundError, ConnectionError: what was found, and what would do.
    """
    programs.keep(cache_dir)
    return models.load_text_model(source, dtype, cache_dir, mesh, shared_layers)


class Store:
    """Packets of documents in a folder, built and read with one model and one adapter.

    The folder is made by the first `add`. It is the one that launch.build_packets and launch.answer
    use; a store may hold packets of several models and adapters, and this object sees its own.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: LanguageModel,
        adapter: Adapter | str | os.PathLike | None = None,
        template: str = "chat",
        preamble: str | None = None,
        other_model: bool = False,
        primer: str | os.PathLike | None = None,
        key_file: str | os.PathLike | None = None,
        compress: str | None = None,
        keep: float | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        openings: bool = True,
    ):
        """
        Args:
          adapter: what documents are wrapped in: an Adapter, the folder of a trained one, a shipped
            name, "primer", or "none" for bare documents. None: the one shipped for the model, else
            "primer".
          template: the wording around texts: "chat", or "completion" for models without a chat
            template; "…_reasoning" lets the model reason before it answers.
          preamble: the instruction before the documents; the usual one if None.
          other_model: accepts an adapter that was trained for another model of the same width.
          primer: what packets are built after in place of the adapter's own primer: a file of texts
            (.jsonl: lines {"id": "…", "text": "…"}), "corpus:3" (three documents of the corpus) or
            "similar:3" (for each document the three most similar to it). The corpus is what one
            `add` is given. None: nothing of one document reaches another.
          key_file: a secret that documents' entries are signed with and checked by; None: that in
            the environment's KVPACKET_STORE_KEY, if any.
          compress: what makes packets smaller: "snapkv", or with settings
            "snapkv/window=16/kernel=3"; None: nothing.
          keep: the share of a packet's slots that stays; the compressor's own if None.
          resident_bytes: the most bytes kept in device memory between calls of `ask`: packets, so
            that what many questions are about is read from disk once; packets laid side by side,
            for the same documents asked again; and documents read in full, for answers in doubt. 0
            keeps none.
          openings: `add` builds a second packet of each document, for questions about documents of
            which it is the first: it is what the full context has of it, so that nothing is lost of
            the first document, or of a single one. It doubles the folder. Bare documents have none.

        Raises:
          ValueError: an unknown template or compressor; an adapter for another model; a primer for
            bare documents; a compressor that the adapter lacks the distiller of; negative
            resident_bytes; a key that is too short.
          FileNotFoundError: no such adapter, primer or key file.
          TypeError: a model's name in place of a model; a compressor or share of another type.
        """
        if not isinstance(model, LanguageModel):
            raise TypeError(f"A store's model is what load_model returns; found {model!r}.")
        self.folder = pathlib.Path(folder).expanduser()
        self.model = model
        self._resident, self._openings = Resident(resident_bytes), openings
        self._key = store_key.read(key_file)
        self._wording = identity.wording(template, preamble)
        self._compressor = compressors.make(compress, keep)
        asked = primers.parse(primer)
        self._maker = primers.maker(model, adapter, asked, template, other_model)
        self.adapter = self._maker.adapter
        check_compressor(self.adapter, self._compressor)
        self._provenance = identity.document_provenance(
            model, self.adapter, self._wording, self._maker.choice, self._compressor
        )

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, {self.model.name})"

    def add(self, documents: Mapping[str, str]) -> Added:
        """Builds the packets of documents and writes them into the folder.

        A packet is the document's keys and values `[L, 1, S, K, H]` each. It is computed where the
        folder has none of this text with this model, adapter and template; what is there is
        verified and kept; what is damaged is built again, with a warning. A document whose id is
        there with another text is replaced.

        Args:
          documents: texts by id.

        Raises:
          ValueError: before anything is computed: no document, two with the same id, an empty text,
            one that is longer than the model's context, fewer than a primer is chosen from, a
            store that another key signed; and numbers that are not finite, of a damaged model.
          OSError: the disk is full or may not be written, or packets were removed meanwhile; what
            was written stays.
        """
        parts = build.plan(
            self.model,
            self.adapter,
            self._wording,
            corpus.from_mapping(documents),
            adapter_name=self._maker.adapter_name,
            choice=self._maker.choice,
            compressor=self._compressor,
            openings=self._openings,
        )
        damaged: list[str] = []
        written = build.build(
            self.model, parts, self.folder, on_damaged=damaged.append, key=self._key
        )
        for text in damaged:
            warnings.warn(text, stacklevel=2)
        added = Added([], [])
        documents = (part for part in parts[1:] if not part.is_of_openings)
        for item in (item for part in documents for item in part.items):
            (added.built if item.name in written else added.present).extend(item.ids)
        return added

    def ask(
        self,
        question: str,
        documents: Iterable[str],
        new_tokens: int = 32,
        method: str = "kv_packet",
        recompute_below: float = RECOMPUTE_BELOW,
        best_first: bool = True,
    ) -> Answer:
        """Answers a question from packets of the folder: only the question runs through the model.

        But where the answer is in doubt packets may be why: then the documents are read in full, as
        full_recompute reads them, and answered from. It is in doubt where the model is not sure of
        it, and where its words stand in another document than the one most like the question.

        Args:
          documents: ids, in the order to be read in, but for `best_first`.
          new_tokens: the longest answer, reasoning not counted. It ends before, where the
            template's answers do.
          method: "kv_packet"; "full_recompute" or "no_cache" show what the model answers from the
            full documents or from none, to tell a model's mistake from a packet's.
          recompute_below: an answer from packets of a lower confidence is in doubt. 0: none is,
            wherever its words stand.
          best_first: the document most like the question, by its words, is read first, for nothing
            is lost of that one; where it has no packet for that (`openings`, bare documents) the
            order stays.

        Raises:
          ValueError: an empty question, no document, a document that is not there (with those that
            are) or was made with another model, adapter, template, compressor or dtype (naming
            it), an unknown method, no room for an answer, or a request that is longer than the
            model's context.
          FileNotFoundError: no such folder, or a packet that must be read is missing.
          storage.packet_file.Damaged: a ValueError; a file is not as it was written. It is named.
        """
        asked = [question], documents, new_tokens, method, recompute_below, best_first
        return self.ask_all(*asked)[0]

    def ask_all(
        self,
        questions: Sequence[str],
        documents: Iterable[str],
        new_tokens: int = 32,
        method: str = "kv_packet",
        recompute_below: float = RECOMPUTE_BELOW,
        best_first: bool = True,
    ) -> list[Answer]:
        """Answers questions about the same documents, several at once, as `ask` answers each.

        With `best_first` those are answered together that have the same document first; of them all
        that are in doubt have the documents read in full once.

        In bfloat16 two tokens may be as likely but for rounding, which differs with the number of
        questions at once: an answer may then go on otherwise.

        Raises as `ask` does, and answers none then; ValueError for no question, and for a single
        text in place of a list.
        """
        if isinstance(questions, str) or not questions:
            raise ValueError(f"Questions are a list of texts, one or more; found {questions!r}.")
        documents = store.as_ids(documents)
        for question in questions:
            session.check_question(question)
        if new_tokens < 1:
            raise ValueError(f"new_tokens is {new_tokens}: an answer has 1 or more.")
        if not 0 <= recompute_below <= 1:
            raise ValueError(f"recompute_below is {recompute_below}, not from 0 to 1.")
        documents = found.find(
            self.model,
            self.folder,
            documents,
            self._wording,
            method,
            *self._maker,
            self._compressor,
            key=self._key,
            resident=self._resident,
            provenance=self._provenance,
        )
        first = [found.closest(documents, q) if best_first else 0 for q in questions]
        answers: dict[int, Answer] = {}

        def answer(i: int) -> None:  # its session is freed before the next is opened
            opened = session.read(documents, i)
            asked = {n: q for n, q in enumerate(questions) if first[n] == i}
            replies = session.answer_all(opened, [*asked.values()], new_tokens, recompute_below)
            for n, r in zip(asked, replies, strict=True):
                answers[n] = Answer(r.text, opened.ids, r.confidence, r.reread)

        for i in dict.fromkeys(first):
            answer(i)
        return [answers[n] for n in range(len(questions))]

    def remove(self, documents: Iterable[str]) -> None:
        """Takes documents out of the folder, of whatever model and adapter their packets are.

        With them go packets that no document has any more, those of earlier texts too. What other
        packets hold of a document that they were primed with stays.

        Args:
          documents: ids.

        Raises, before anything is removed:
          ValueError: no id, or a document that is not there, with those that are.
          FileNotFoundError: no such folder, or a packet that another document should have.
          BlockingIOError: a build is under way.
          storage.packet_file.Damaged: an entry that does not say which packet it is of.
        """
        removal.remove(self.folder, store.as_ids(documents))

    def documents(self) -> list[str]:
        """Ids of the documents that `add` has put here, in alphabetical order.

        As `ask` finds them: with this model, adapter, template, primer, compressor and key. Their
        packets are not looked at.
        """
        return store.ids(self.folder, self._provenance, self._key)
