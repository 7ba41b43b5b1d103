"""Sweeps: members and their flags, what is skipped, shards, failures, the job array."""

import json
import pathlib
import shlex
import sys
import time
import types

import pytest

from kvpacket_jax import data, sweep
from kvpacket_jax.methods.settings import make
from kvpacket_jax.runtime import sealed
from kvpacket_jax.train import setup
from models.disk.files import write_whole

FILE = """
from ml_collections import ConfigDict

def get_config(arg=None):
    program, _, name = (arg or "").partition(":")
    if program == "train":
        return ConfigDict({"header": 8, "lr": 0.1})
    return ConfigDict(
        {"adapter": "", "methods": ("a",), "data": {"n": 1}, "on": False, "set": name}
    )

def sweep(add):
    add("pair", "train+evaluate", **{"train.header": 4, "evaluate.data.n": 2})
    add("one", "evaluate", **{"data.n": 3, "methods": ("a b", "c:x=1,y='q'"), "on": True})
    add("lr", "train", lr=0.02)
"""


@pytest.fixture
def file(tmp_path):
    return write(tmp_path, FILE)


def write(tmp_path, text: str) -> str:
    path = tmp_path / "sweep_x.py"
    path.write_text(text)
    return str(path)


class Stub:
    """Runs nothing; writes what a program writes last, but for the names in `failing`."""

    def __init__(self, *failing: str):
        self.failing, self.ran = failing, []

    def __call__(self, command) -> int:
        flags = dict(f.partition("=")[::2] for f in command if f.startswith("--"))
        workdir = pathlib.Path(flags["--workdir"])
        program = command[2].removeprefix("launch.")
        self.ran.append(f"{workdir.name} {program}")
        if any(f in str(workdir) for f in self.failing):
            return 3
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / sweep.PROGRAMS[program].final).write_text("as written")
        return 0


def run(members, *failing):
    stub = Stub(*failing)
    failed = sweep.run_members(members, stub)
    return stub.ran, failed


def test_flags_give_each_program_its_config(file, tmp_path):
    pair, one, lr = sweep.members(f"{file}:other", tmp_path / "w", (), ["--cache_dir=c"])
    train, evaluate = pair.runs
    assert train.workdir == tmp_path / "w/pair/train"
    assert train.command[:3] == [sys.executable, "-m", "launch.train"]
    assert evaluate.command[2:] == [
        "launch.evaluate",
        f"--config={file}:evaluate:other",
        "--config.data.n=2",
        f"--config.adapter={tmp_path}/w/pair/train/adapter",
        f"--workdir={tmp_path}/w/pair/evaluate",
        "--cache_dir=c",
    ]
    assert one.runs[0].workdir == tmp_path / "w/one"
    # From the printed line through a shell to the programs' own parser.
    line = sweep.described(one).splitlines()[1]
    flags = [f for f in shlex.split(line) if f.startswith("--config")]
    config = sweep.parse(flags)
    assert config.methods == ("a b", "c:x=1,y='q'") and config.on is True and config.data.n == 3
    assert config["set"] == "other" and config.adapter == ""
    assert lr.runs[0].config == (f"--config={file}:train:other", "--config.lr=0.02")


def test_done_members_are_skipped_until_their_settings_change(file, tmp_path):
    members = sweep.members(file, tmp_path)
    ran, failed = run(members)
    assert ran == ["train train", "evaluate evaluate", "one evaluate", "lr train"] and not failed
    assert run(members) == ([], {})
    assert sweep.described(members[0]).startswith("# pair: done\n# ")
    (tmp_path / "pair/evaluate/results.json").unlink()
    assert run(members)[0] == ["evaluate evaluate"]
    again = sweep.members(file, tmp_path, ["evaluate.data.n=7"])
    assert "--config.data.n=7" in again[1].runs[0].config
    assert run(again)[0] == ["evaluate evaluate", "one evaluate"]
    write(
        tmp_path,
        FILE.replace('"lr": 0.1', '"lr": 0.1, "seed": 0').replace('"on": F', '"k": 1, "on": F'),
    )
    assert run(again)[0] == ["train train", "evaluate evaluate", "one evaluate", "lr train"]
    seal = tmp_path / "pair/train/adapter" / sealed.FILE
    for text in ("trained", "trained longer"):  # the adapter that the member's second run is of
        write_whole(seal, text)
        assert run(again)[0] == ["evaluate evaluate"]
    (tmp_path / "lr/sweep.json").unlink()  # run by hand, nobody knows with which settings
    assert run(again)[0] == ["lr train"]


def test_a_member_is_not_done_whose_questions_are_others_now(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("first")
    named = FILE.replace('"lr": 0.1', f'"lr": 0.1, "path": {str(questions)!r}')
    members = sweep.members(write(tmp_path, named), tmp_path)
    run(members)
    assert all(member.done for member in members)
    questions.write_text("second")
    assert [member.done for member in members] == [
        all(r.program == "evaluate" for r in member.runs) for member in members
    ]


def test_a_member_is_not_done_whose_record_or_results_are_not_what_was_written(file, tmp_path):
    (member,) = (m for m in sweep.members(file, tmp_path) if m.name == "one")
    run([member])
    assert member.done
    earlier = json.dumps(member.runs[0].config)
    for name in ("results.json", "sweep.json"):
        path = tmp_path / "one" / name
        whole = path.read_bytes()
        for bad in (b"", whole[:-5], whole + b"[]", b"[" * 100_000, earlier.encode()):
            if bad != whole:
                path.write_bytes(bad)
                assert not member.done and run([member])[0] == ["one evaluate"]


def test_a_failure_stops_its_member_alone_and_is_named(file, tmp_path):
    ran, failed = run(sweep.members(file, tmp_path), "pair/train")
    assert ran == ["train train", "one evaluate", "lr train"]
    assert list(failed) == ["pair"] and "train ended with exit status 3" in failed["pair"]
    assert run(sweep.members(file, tmp_path))[0] == ["train train", "evaluate evaluate"]


def test_a_program_that_ends_unfinished_is_not_done(file, tmp_path):
    failed = sweep.run_members(sweep.members(file, tmp_path), lambda command: 0)
    assert list(failed) == ["pair", "one", "lr"]
    assert "before it wrote" in failed["lr"] and not (tmp_path / "lr").exists()


def test_a_stopped_training_is_not_done_though_it_has_an_adapter(file, tmp_path):
    def execute(command):
        (tmp_path / "lr" / sweep.ADAPTER).mkdir(parents=True)
        return 0

    (member,) = (m for m in sweep.members(file, tmp_path) if m.name == "lr")
    assert "before it wrote" in sweep.run_member(member, execute) and not member.done


def test_shards_are_all_members_once(file, tmp_path):
    members = sweep.members(file, tmp_path)
    parts = [[m.name for m in sweep.shard(members, f"{i}/2")] for i in range(2)]
    assert parts == [["pair", "lr"], ["one"]]
    for wrong in ("2/2", "1", "a/b", "0/0", "-1/2"):
        with pytest.raises(ValueError, match="i/n with i from 0"):
            sweep.shard(members, wrong)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('add("a/b", "train")', "a name is a folder's"),
        ('add("a", "train"); add("a", "evaluate")', "two of that name"),
        ('add("a", "evaluate+train")', "program is train, evaluate or train"),
        ('add("a", "train", heder=3)', 'header" instead of "heder'),
        ('add("a", "train", header=0.5)', "0.5"),
        ('add("a", "train", lr=1)', "lr is a float in the base config"),
        ('add("a", "train+evaluate", header=3)', "neither train. nor evaluate."),
        ("pass", "adds no member"),
    ],
)
def test_mistakes_in_a_file_are_named_before_anything_runs(tmp_path, line, match):
    text = FILE[: FILE.index("    add(")] + f"    {line}\n"
    with pytest.raises(ValueError, match=match):
        sweep.members(write(tmp_path, text), tmp_path)


def test_mistakes_on_the_command_line_are_named(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        sweep.members(str(tmp_path / "none.py"), tmp_path)
    with pytest.raises(ValueError, match=r"no function sweep\(add\)"):
        sweep.members(write(tmp_path, "x = 1"), tmp_path)
    write(tmp_path, FILE)
    with pytest.raises(ValueError, match="PROGRAM.field=value"):
        sweep.members(file, tmp_path, ["num_samples=20"])
    only = FILE.replace('"evaluate",', '"train",').replace("train+evaluate", "evaluate")
    only = only[: only.index("    add(")] + '    add("a", "evaluate")\n'
    with pytest.raises(ValueError, match="no member of .* runs that program"):
        sweep.members(write(tmp_path, only), tmp_path, ["train.header=2"])


def test_commands_run_as_processes_and_are_stopped_with_the_sweep(tmp_path):
    assert sweep.execute([sys.executable, "-c", "import sys; sys.exit(5)"]) == 5
    mark = tmp_path / "mark"
    # The child stops its parent, and then waits to be stopped itself.
    code = (
        "import os, signal, sys, time\n"
        f"stop = lambda *_: (open({str(mark)!r}, 'w').close(), sys.exit())\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    with pytest.raises(SystemExit):
        sweep.execute([sys.executable, "-c", code])
    assert mark.exists() and time.monotonic() - start < 50


def test_slurm_gets_what_is_not_done(file, tmp_path, monkeypatch):
    class Executor:
        def __init__(self, folder, cluster):
            self.cluster = cluster

        def update_parameters(self, **parameters):
            self.parameters = parameters

        def map_array(self, function, members):
            submitted.append((self.cluster, self.parameters, [m.name for m in members]))
            return [types.SimpleNamespace(job_id=f"7_{i}") for i, _ in enumerate(members)]

    submitted = []
    members = sweep.members(file, tmp_path)
    sweep.run_members(members[:1], Stub())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RuntimeError, match="pip install submitit"):
        sweep.submit(members, tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor))
    assert sweep.submit(members, tmp_path, "timeout_min=60,slurm_partition=gpu") == ["7_0", "7_1"]
    expected = {"name": "sweep", "timeout_min": 60, "slurm_partition": "gpu"}
    assert submitted == [("slurm", expected, ["one", "lr"])]
    with pytest.raises(ValueError, match="not name=value"):
        sweep.submit(members, tmp_path, "gpu")


@pytest.mark.parametrize(
    "name",
    [
        *("ratios", "ratios.py:niah", "documents", "lengths", "compress.py:own_docs"),
        *("primers", "primers.py:own_docs"),
    ],
)
def test_shipped_sweeps_name_what_exists(name, tmp_path):
    file, _, arg = name.partition(":")
    path = f"configs/sweep_{file.removesuffix('.py')}.py" + (f":{arg}" if arg else "")
    members = sweep.members(path, tmp_path)
    for run in (r for m in members for r in m.runs):
        config = sweep.parse(run.config)
        entries = [config.dataset] if run.program == "evaluate" else config.mixture.values()
        for entry in entries:  # its options are checked; nothing is generated
            assert entry.name in data.DATASETS
        for spec in config.get("methods", ()):
            make(spec)
        if run.program == "evaluate":
            assert config.teacher == str(tmp_path / "teacher")  # one for all
        else:
            setup.check(config)
    if file == "documents":
        sets = [sweep.parse(m.runs[0].config).dataset.options for m in members]
        assert len({(o.num_documents, o.document_words) for o in sets}) == len(members)
