"""Measures an adapter's card: how near its packets come to the full context, by kind of document.

python -m launch.card --adapter=runs/mine/adapter --config=configs/card.py:cpu
python -m launch.card --adapter=runs/mine/adapter --config.batch_size=8  # on a GPU

The card is written beside the adapter; the primer's, which has no folder, in the user's cache. It
has the adapter, its primer alone and bare packets, on test questions. Stopped, the same command
goes on with the kinds that are left.

python -m launch.card --adapter=qwen2.5-coder-0.5b --show --figure=card.svg  # the card there is
"""

import pathlib

from absl import app, flags

from launch.common import caches, configs, devices, errors, folders

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

CONFIG = configs.define(
    "configs/card.py", "Which kinds of documents; any field as --config.field=value."
)
ADAPTER = flags.DEFINE_string(
    "adapter", None, "A trained adapter's folder, a shipped name, or primer."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where the card goes, or with --show lies; default: beside the adapter."
)
SHOW = flags.DEFINE_bool("show", False, "Shows the card there is; nothing is measured.")
FIGURE = flags.DEFINE_string("figure", None, "Draws the card here, as SVG.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax import adapters
    from kvpacket_jax.report import cards
    from kvpacket_jax.runtime import progress
    from models.disk.files import write_whole

    caches.quiet_logs()
    with errors.in_one_line():
        folders.check_named("adapter", ADAPTER.value)
        folders.check_file("output", OUTPUT.value)
        folders.check_file("figure", FIGURE.value, ".svg")
        if ADAPTER.value in (adapters.NONE, adapters.PRIMER) and SHOW.value:
            raise ValueError("--show takes a trained adapter: its folder, or a shipped name.")
        known = adapters.known_card(ADAPTER.value, OUTPUT.value) if SHOW.value else _measured()
        if FIGURE.value:
            write_whole(pathlib.Path(FIGURE.value).expanduser(), cards.figure(known))
    progress.console.print(cards.table(known.rows))
    progress.paragraph(cards.legend(known))
    if FIGURE.value:
        progress.paragraph(f"Drawn in {FIGURE.value}")


def _measured():
    """The card, measured and written."""
    from kvpacket_jax import adapters
    from kvpacket_jax.runtime import progress
    from kvpacket_jax.train import card, run

    config, cache_dir = CONFIG.value, caches.use()
    if ADAPTER.value == adapters.NONE:
        raise ValueError("--adapter=none has no card: cards compare with bare packets anyway.")
    model = run.load_model(config, cache_dir, devices.MESH.value)
    adapter = adapters.choose(model, ADAPTER.value, config.template, config.other_model)
    path = OUTPUT.value or adapters.card_path(model, ADAPTER.value, config.template)
    measured = card.write_measured(path, model, adapter, config, progress.SHOWN)
    progress.paragraph(f"Written to {path}")
    return measured


if __name__ == "__main__":
    flags.mark_flag_as_required("adapter")
    configs.run(main)
