"""Averages trained adapters whose writers began from the same parts.

python -m launch.average --adapters=runs/a/adapter,runs/b/adapter --shares=.4,.6 --output=mean
python -m launch.validate --adapters=primer,runs/a/adapter,mean

The change that each run made is taken times its share; the sum is cut to a rank. Shares that add up
to less than 1 make the change smaller.
"""

import math

from absl import app, flags

from launch.common import adapter_list, caches, errors

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(errors)

MODEL = flags.DEFINE_string("model", "qwen2.5-coder-0.5b", "What they were trained for.")
SHARED_LAYERS = flags.DEFINE_string("shared_layers", "", "As in launch.build_packets.")
ADAPTERS = adapter_list.define("Folders or shipped names.")
SHARES = flags.DEFINE_list("shares", None, "A number for each; default: equal ones.")
RANK = flags.DEFINE_integer(
    "rank", None, "Of the sum; default: the largest of the adapters'.", lower_bound=1
)
OUTPUT = flags.DEFINE_string("output", None, "The folder to write.", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    import models
    from kvpacket_jax import adapters
    from kvpacket_jax.adapters import average
    from kvpacket_jax.packets import adapter as adapter_lib

    cache_dir = caches.use()
    with errors.in_one_line():
        names = ADAPTERS.value
        shares = _shares(SHARES.value or [1 / len(names)] * len(names))
        if untrained := [n for n in names if n in (adapters.PRIMER, adapters.NONE)]:
            raise ValueError(f"{untrained[0]} is not trained: there is nothing to average.")
        model = models.load_text_model(
            MODEL.value, cache_dir=cache_dir, shared_layers=SHARED_LAYERS.value
        )
        chosen = [adapters.choose(model, name) for name in names]
        ranks = [f.a.shape[-1] for a in chosen for f in (a.writer or {}).values()]
        rank = RANK.value or max(ranks, default=1)
        mean = average.average(chosen, shares, rank)
        metadata = {
            "model": model.fingerprint,
            "model_name": model.name,
            "averaged": list(zip(map(adapter_lib.fingerprint, chosen), shares, strict=True)),
            "rank": rank,
        }
        adapter_lib.save_adapter(OUTPUT.value, mean, metadata)
    print(f"{OUTPUT.value}: {adapter_lib.describe(mean)}")


def _shares(given) -> list[float]:
    try:
        shares = list(map(float, given))
    except ValueError:
        shares = [math.nan]
    if not all(map(math.isfinite, shares)):
        raise ValueError(f"--shares={','.join(map(str, given))}: give numbers, with commas.")
    return shares


if __name__ == "__main__":
    flags.mark_flag_as_required("adapters")
    app.run(main)
