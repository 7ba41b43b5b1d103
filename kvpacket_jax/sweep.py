"""Many runs of the programs in launch/, from one file that lists them.

A sweep's file is a config: `get_config(arg)` returns a program's base config, where `arg` is the
program's name, or `program:NAME` where the file is given as FILE:NAME. Its `sweep(add)` calls
`add(name, program, **overrides)` for every member; `program` is "train", "evaluate" or
"train+evaluate", which evaluates the adapter that the member trained. Overrides are fields of the
program's config, dotted; of a pair of programs, each begins with the one it is for
("train.header"). A value is the config's own type, as for `--config.field=value`.

Every member is a process of its own: it gives its memory back, and one that fails stops no other.
"""

import functools
import json
import operator
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from kvpacket_jax.runtime import resume, sealed, shards
from kvpacket_jax.runtime.progress import SILENT, Progress
from models.disk.files import write_whole
from models.foreign import digests


class Program(NamedTuple):
    module: str
    final: str  # what it writes last: a workdir that has it is done


PROGRAMS = {
    "train": Program("launch.train", "curves.png"),
    "evaluate": Program("launch.evaluate", "results.json"),
}
ADAPTER = "adapter"  # in the workdir of a training, from its first validation on
RECORD = "sweep.json"  # of a finished run: its config, its adapter, what it wrote last


class Run(NamedTuple):
    """One program with one config in one workdir."""

    program: str
    workdir: pathlib.Path
    config: tuple[str, ...]  # the flags that are the config
    other: tuple[str, ...] = ()  # flags that change no result

    @property
    def command(self) -> list[str]:
        module = PROGRAMS[self.program].module
        given = (*self.config, f"--workdir={self.workdir}", *self.other)
        return [sys.executable, "-m", module, *given]

    @property
    def done(self) -> bool:
        """Whether it is finished, with this config and adapter, and its last file is still that.

        If not, the program knows what to do. A record of an earlier version does not count.
        """
        try:
            stored = sealed.read_json(self.workdir / RECORD, "")
            return not resume.differences(stored, self._record())
        except (FileNotFoundError, sealed.Damaged):
            return False

    def record_end(self) -> None:
        """Writes down that it is finished. Raises FileNotFoundError where it is not."""
        text = json.dumps(sealed.stamped(self._record()), indent=1)
        write_whole(self.workdir / RECORD, text + "\n")

    def _record(self) -> dict:
        # The whole config, not its flags: the file may have changed, and so may a trained adapter
        # and files of questions.
        config = parse(self.config).to_dict()
        record = {
            "config": config,
            "final": digests.of_file(self.workdir / PROGRAMS[self.program].final),
        }
        seal = pathlib.Path(config.get("adapter") or "none").expanduser() / sealed.FILE
        record |= {"adapter": digests.of_file(seal)} if seal.exists() else {}
        data = {str(path): digests.of_file(path) for path in _data_files(config)}
        return record | ({"data": data} if data else {})


def _data_files(settings: Mapping[str, Any]) -> set[pathlib.Path]:
    """The files of data that a config names, at whatever depth; folders are not looked into."""
    found = set()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _data_files(value)
        elif name in resume.PATHS and isinstance(value, str):
            path = pathlib.Path(value).expanduser()
            found |= {path} if path.is_file() else set()
    return found


class Member(NamedTuple):
    """One setting of a sweep: its runs, one after the other."""

    name: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> bool:
        return all(run.done for run in self.runs)


def members(
    file: str,
    workdir: str | pathlib.Path,
    overrides: Sequence[str] = (),
    other: Sequence[str] = (),
) -> list[Member]:
    """The members of a sweep, in the order of its file, every setting checked.

    Args:
      file: FILE.py or FILE.py:NAME.
      workdir: each run gets `workdir`/NAME, or `workdir`/NAME/PROGRAM where there are two.
      overrides: "program.field=value", for all members that run the program.
      other: further flags of the programs.

    Raises:
      ValueError: no sweep in the file, a name twice, a program or field that does not exist, a
        value of another type than the field's.
      FileNotFoundError: no such file.
    """
    path, _, arg = file.partition(":")
    root = pathlib.Path(workdir).expanduser()
    by_name: dict[str, Member] = {}
    extra = _extra(overrides)

    def add(name: str, program: str, **settings: Any) -> None:
        where = f"{path}, member {name!r}"
        if not re.fullmatch(r"[\w.=+-]+", name) or name.startswith("."):
            raise ValueError(f"{where}: a name is a folder's: letters, digits and . _ = + - only.")
        if name in by_name:
            raise ValueError(f"{where}: there are two of that name.")
        programs = program.split("+")
        if programs not in (["train"], ["evaluate"], ["train", "evaluate"]):
            known = "train, evaluate or train+evaluate"
            raise ValueError(f"{where}: program is {known}, not {program!r}.")
        by_program = _by_program(programs, settings, where)
        runs = []
        for p in programs:
            folder = root / name / (p if len(programs) > 1 else "")
            if p == "evaluate" and runs:
                by_program[p]["adapter"] = str(runs[0].workdir / ADAPTER)
            base = f"--config={path}:" + ":".join(filter(None, (p, arg)))
            teacher = root / "teacher"
            config = _config_flags(base, by_program[p], extra.get(p, {}), teacher, where)
            runs.append(Run(p, folder, config, tuple(other)))
        by_name[name] = Member(name, tuple(runs))

    _sweep_of(path)(add)
    if not by_name:
        raise ValueError(f"{path}: its sweep(add) adds no member.")
    unused = set(extra) - {run.program for m in by_name.values() for run in m.runs}
    if unused:
        raise ValueError(f"--override={unused.pop()}.…: no member of {path} runs that program.")
    return list(by_name.values())


def _sweep_of(path: str) -> Callable:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path!r}; --config names a sweep's file.")
    sweep = runpy.run_path(path).get("sweep")
    if sweep is None:
        raise ValueError(f"{path} has no function sweep(add): it lists one run, not a sweep.")
    return sweep


def _by_program(programs: Sequence[str], settings: Mapping[str, Any], where: str) -> dict:
    if len(programs) == 1:
        return {programs[0]: dict(settings)}
    split: dict[str, dict] = {p: {} for p in programs}
    for key, value in settings.items():
        program, _, field = key.partition(".")
        if program not in split or not field:
            raise ValueError(f"{where}: {key!r} begins with neither train. nor evaluate.")
        split[program][field] = value
    return split


def _extra(overrides: Sequence[str]) -> dict[str, dict[str, str]]:
    extra: dict[str, dict[str, str]] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        program, _, field = key.partition(".")
        if program not in PROGRAMS or not field or not equals:
            raise ValueError(
                f"--override={text}: expected PROGRAM.field=value with a program of "
                f"{', '.join(PROGRAMS)}, as in evaluate.num_samples=20."
            )
        extra.setdefault(program, {})[field] = value
    return extra


def _config_flags(
    base: str,
    settings: Mapping[str, Any],
    extra: Mapping[str, str],
    teacher: pathlib.Path,
    where: str,
) -> tuple[str, ...]:
    """The flags of a config, parsed here as the program will, so that none fails hours later.

    Members that name no folder for the teacher's targets share `teacher`: it serves them all.
    """
    own = {key: value for key, value in settings.items() if key not in extra}
    texts = [f"--config.{k}={v}" for k, v in (own | dict(extra)).items()]
    try:
        config = parse([base, *texts])
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        what = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"{where}: {base} {shlex.join(texts)}: {what}") from error
    for key, value in own.items():
        parsed = functools.reduce(operator.getitem, key.split("."), config)
        if parsed != value or type(parsed) is not type(value):
            raise ValueError(
                f"{where}: {key} is a {type(parsed).__name__} in the base config, and {value!r} "
                f"comes out as {parsed!r}. Give a value of its type, or another base."
            )
    if config.get("teacher") == "":
        texts.append(f"--config.teacher={teacher}")
    return (base, *texts)


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that a program gets from `--config=FILE` and `--config.field=value` flags."""
    argv, values = ["sweep", *argv], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def shard(items: Sequence[Member], text: str) -> list[Member]:
    """Every n-th member from the i-th, for "i/n" with i from 0. Raises ValueError for others."""
    first, step = shards.parse(text)
    return list(items[first::step])


def described(member: Member) -> str:
    """A member's commands, to be pasted into a shell; those of what is done as comments."""
    lines = [f"# {member.name}" + (": done" if member.done else "")]
    lines += [("# " if run.done else "") + shlex.join(run.command) for run in member.runs]
    return "\n".join(lines)


def execute(command: Sequence[str]) -> int:
    """Runs a command and returns its exit status. Stopped, it stops the command first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    child = subprocess.Popen(command)
    try:
        return child.wait()
    except BaseException:
        child.terminate()  # training saves its state and ends
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def run_member(member: Member, execute: Callable[[Sequence[str]], int] = execute) -> str:
    """Runs what of a member is not done. Returns what failed, or an empty string."""
    for run in member.runs:
        if run.done:
            continue
        status = execute(run.command)
        if status:
            return f"{run.program} ended with exit status {status}: {shlex.join(run.command)}"
        final = run.workdir / PROGRAMS[run.program].final
        if not final.exists():  # a stopped training ends well, unfinished
            return f"{run.program} ended before it wrote {final}; the same command goes on."
        run.record_end()
    return ""


def run_members(
    members: Sequence[Member],
    execute: Callable[[Sequence[str]], int] = execute,
    progress: Progress = SILENT,
) -> dict[str, str]:
    """Runs members one after another, whatever becomes of each; those done are skipped.

    Returns:
      What failed, by the member's name.
    """
    failed, skipped = {}, 0
    for i, member in enumerate(members):
        if member.done:
            skipped += 1
            continue
        progress.say(f"\n[{i + 1}/{len(members)}] {member.name}")
        failure = run_member(member, execute)
        if failure:
            failed[member.name] = failure
            progress.say(f"{member.name} failed: {failure}")
    ran = len(members) - skipped - len(failed)
    progress.say(
        f"\n{len(members)} members: {ran} run, {skipped} done before, {len(failed)} failed."
    )
    for name, failure in failed.items():
        progress.say(f"  {name}: {failure}")
    return failed


def submit(
    members: Sequence[Member], folder: pathlib.Path, options: str = "", cluster: str = "slurm"
) -> list[str]:
    """Submits members that are not done as one job array, through submitit.

    Args:
      folder: on a disk that all machines see; submitit's scripts and the jobs' output go there.
      options: "name=value,…" of submitit's parameters, as in "timeout_min=600,gpus_per_node=1".

    Returns:
      The jobs' ids, in the order of the members.
    """
    try:
        import submitit
    except ImportError as error:
        raise RuntimeError(
            "--slurm needs submitit, which is not installed here: pip install submitit"
        ) from error
    parameters: dict[str, Any] = {"name": "sweep"}
    for pair in filter(None, options.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ValueError(f"--slurm_options: {pair!r} is not name=value.")
        parameters[name] = int(value) if value.isdigit() else value
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**parameters)
    todo = [member for member in members if not member.done]
    return [job.job_id for job in executor.map_array(_job, todo)]


def _job(member: Member) -> None:
    failure = run_member(member)
    if failure:
        raise RuntimeError(f"{member.name}: {failure}")
