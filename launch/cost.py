"""What one request costs with each method: time to first token, FLOPs, bytes, memory, the floor.

python -m launch.cost --model=qwen2.5-coder-0.5b --documents=8x1024 --query=50
python -m launch.cost --model=random:llama-3.1-8b --methods=kv_packet,cache_blend:ratio=0.3
"""

from absl import app, flags

from launch import caches, devices, errors

flags.adopt_module_key_flags(caches)  # so that --help shows them
flags.adopt_module_key_flags(devices)
flags.adopt_module_key_flags(errors)

MODEL = flags.DEFINE_string(
    "model",
    "qwen2.5-coder-0.5b",
    "A demo model, a Hugging Face hub id, a folder, a .gguf file, or a named shape with random "
    "weights (random:llama-3.1-8b).",
)
DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Of the weights.")
METHODS = flags.DEFINE_string("methods", "all", "name or name:field=value, with commas; or all.")
DOCUMENTS = flags.DEFINE_string("documents", "8x1024", "Number x tokens; several with commas.")
PREAMBLE = flags.DEFINE_integer("preamble", 16, "Tokens before the documents.", lower_bound=0)
QUERY = flags.DEFINE_integer("query", 50, "Tokens of the query.", lower_bound=1)
ADAPTER = flags.DEFINE_string("adapter", None, "A folder or shipped name; default: random tokens.")
HEADER = flags.DEFINE_integer("header", 8, "Random tokens before a document.", lower_bound=0)
TRAILER = flags.DEFINE_integer("trailer", 8, "Random tokens behind a document.", lower_bound=0)
RUNS = flags.DEFINE_integer("runs", 5, "Timed runs, interleaved.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the token ids and random soft tokens.")
JSON = flags.DEFINE_string("json", None, "Also writes the rows to this file, every run in them.")
PROFILE_DIR = flags.DEFINE_string("profile_dir", None, "Writes a jax profiler trace here.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    # Imported here: --help needs no jax.
    from kvpacket_jax.measure import cost_report
    from kvpacket_jax.report import tables
    from kvpacket_jax.runtime import progress

    cache_dir = caches.use()
    point = {
        "model": MODEL.value,
        "dtype": DTYPE.value,
        "methods": (METHODS.value,),
        "documents": DOCUMENTS.value,
        "preamble": PREAMBLE.value,
        "query": QUERY.value,
        "adapter": ADAPTER.value,
        "header": HEADER.value,
        "trailer": TRAILER.value,
        "runs": RUNS.value,
        "seed": SEED.value,
    }
    with errors.in_one_line():
        measured = cost_report.run(
            point, cache_dir, devices.MESH.value, PROFILE_DIR.value, progress.step
        )
        if JSON.value:
            tables.write_json(JSON.value, measured.rows, measured.machine)
    cost_report.show(measured)


if __name__ == "__main__":
    app.run(main)
