"""Answers questions from the packets of documents on disk (launch.build_packets makes them).

python -m launch.answer --store=DIR --documents=id1,id2 --query="…"
python -m launch.answer --store=DIR --documents=id1,id2 < questions.txt

Flags that are not given are as the documents were built, but for --preamble and --other_model; of
several builds, what they share. Without --query it answers line after line of standard input, until
it ends or has the line "quit" or "exit"; with status 1 where a question had no answer.
"""

import sys

from absl import app, flags

from launch.common import caches, devices, errors, replies, serving, stores

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)
flags.adopt_module_key_flags(serving)

DOCUMENTS = flags.DEFINE_list(
    "documents", [], "Ids, in the order to be read in; one with a comma in quotes."
)
BEST_FIRST = flags.DEFINE_bool(
    "best_first",
    True,
    "The document most like the question, by its words, is read first, whatever the order, for "
    "nothing is lost of that one. Where it has no packet for that the order stays, as for bare "
    "packets: to compare methods with no_recompute give --nobest_first.",
)
QUERY = flags.DEFINE_string("query", None, "The question.")
METHOD = flags.DEFINE_string(
    "method",
    "kv_packet",
    "kv_packet; no_recompute: packets built with --adapter=none; full_recompute or no_cache: what "
    "the model answers without packets, from the full documents or from none.",
)
NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "The longest answer.", lower_bound=1)
MIN_AGREEMENT = flags.DEFINE_float(
    "min_agreement",
    0.9,
    "Warns where, by the adapter's card, packets of such documents give less than this share of "
    "the full context's right answers. 0: never.",
    lower_bound=0.0,
    upper_bound=1.0,
)
RECOMPUTE_BELOW = flags.DEFINE_float(
    "recompute_below",
    0.3,
    "Where a token of an answer from packets has a lower probability, or the answer stands in "
    "another document than the one most like the question, the documents are read in full and "
    "answered from; a line on standard error says so. 0: never, and answers are shown as they are "
    "decoded.",
    lower_bound=0.0,
    upper_bound=1.0,
)
SHOW_COST = flags.DEFINE_bool("show_cost", False, "Measures TTFT, its parts and FLOPs.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.serve import found, session
    from kvpacket_jax.serve.resident import RESIDENT_BYTES, Resident
    from kvpacket_jax.storage import store

    cache_dir = caches.use()
    with errors.in_one_line():
        # First what needs no model: loading one takes a while.
        folder = stores.folder()
        found.check_method(METHOD.value)
        if SHOW_COST.value and METHOD.value not in found.READ_PACKETS:
            raise ValueError("--show_cost compares packets with full_recompute: omit --method.")
        found.check_documents(folder, DOCUMENTS.value)
        method = METHOD.value
        which = method == found.BARE, method in found.WITHOUT_PACKETS
        if said := serving.default_to_store(DOCUMENTS.value, *which):
            print(said, file=sys.stderr)
        wording, key = serving.wording(), stores.key()
        if key is None and store.have_signatures(folder, DOCUMENTS.value):
            print(stores.UNCHECKED, file=sys.stderr)
        if QUERY.value is not None:
            session.check_question(QUERY.value)
        model, *maker = serving.load(cache_dir, progress.stderr)
        with progress.step("Reading the documents", progress.stderr):
            given = model, folder, DOCUMENTS.value, wording, METHOD.value, *maker
            documents = found.find(*given, key=key, resident=Resident(RESIDENT_BYTES))
            first = 0
            if BEST_FIRST.value and QUERY.value is not None:
                first = found.closest(documents, QUERY.value)
            opened = session.read(documents, first)
        if MIN_AGREEMENT.value:
            limits = MIN_AGREEMENT.value, RECOMPUTE_BELOW.value
            if said := session.remark(opened, maker[1], *limits, BEST_FIRST.value):
                print(said, file=sys.stderr)
    best_first = BEST_FIRST.value and QUERY.value is None  # the order of one question is opened
    how = NEW_TOKENS.value, RECOMPUTE_BELOW.value, SHOW_COST.value, best_first
    if replies.give(opened, QUERY.value, *how):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
