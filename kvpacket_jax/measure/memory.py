"""How many bytes a program reads, makes and holds. Nothing here knows models or methods."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn, jaxpr_as_fun

from kvpacket_jax.measure.flops import is_var, programs_of


def tree_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or ShapeDtypeStructs, whole arrays whatever their sharding."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def reads(fn: Callable, *args: Any) -> Any:
    """How many of the programs that `fn(*args)` starts need each array: a tree of ints like `args`.

    `args` are pytrees of arrays or ShapeDtypeStructs; nothing runs or compiles.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    counts = collections.Counter()
    for eqn, needed in programs_of(jaxpr):
        counts.update({v for v, n in zip(eqn.invars, needed, strict=True) if n and is_var(v)})
    return jax.tree.unflatten(jax.tree.structure(args), [counts[v] for v in jaxpr.invars])


def made_bytes(fn: Callable, *args: Any) -> int:
    """Bytes of what `fn(*args)` returns, without the arguments that it only passes on."""
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    new = {v for v in jaxpr.outvars if is_var(v)} - set(jaxpr.invars)
    return tree_bytes([v.aval for v in new])


class Memory(NamedTuple):
    """Bytes on each device. `aliased` is in both arguments and outputs: donated buffers."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int


def memory_analysis(fn: Callable, *args: Any, donate: Sequence[int] = ()) -> Memory | None:
    """Memory of `fn(*args)` compiled for the default device; nothing runs.

    `args` are pytrees of arrays or ShapeDtypeStructs, `donate` the positions of those whose
    buffers the program may reuse. None where the backend does not say.
    """
    compiled = jax.jit(fn, donate_argnums=tuple(donate)).lower(*args).compile()
    if (sizes := compiled.memory_analysis()) is None:
        return None
    parts = ("argument", "output", "alias", "temp")
    return Memory(*(getattr(sizes, f"{part}_size_in_bytes") for part in parts))


def peak_bytes(fn: Callable, *args: Any) -> int | None:
    """The most memory that arrays take while `fn(*args)` runs, the arguments included; not run.

    Of its programs one after the other, compiled for the default device: what is alive before
    each, what it makes and its temporaries. None where the backend does not say.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    programs, compiled = programs_of(jaxpr), {}
    last = {v: i for i, (eqn, _) in enumerate(programs) for v in eqn.invars if is_var(v)}
    last |= {v: len(programs) for v in jaxpr.outvars if is_var(v)}
    alive, peak = {}, 0
    for i, (eqn, _) in enumerate(programs):
        if (inner := eqn.params.get("jaxpr")) is None or eqn.primitive.name != "jit":
            extra = tree_bytes([v.aval for v in eqn.outvars])
        else:
            if id(inner) not in compiled:  # calls of one program share its jaxpr
                compiled[id(inner)] = _compiled_memory(eqn)
            if (memory := compiled[id(inner)]) is None:
                return None
            extra = memory.outputs - memory.aliased + memory.temporaries
        peak = max(peak, sum(alive.values()) + extra)
        alive |= {v: tree_bytes(v.aval) for v in eqn.outvars}
        alive = {v: n for v, n in alive.items() if last.get(v, -1) > i}
    return tree_bytes(args) + peak


@jax.tree_util.register_pytree_with_keys_class
class _Results:
    """Arrays under the paths "result…" that they had in the tree of another program's results."""

    def __init__(self, arrays: Sequence[Any], paths: tuple[str, ...]):
        self._arrays, self._paths = tuple(arrays), paths

    def tree_flatten_with_keys(self):
        keys = [path.removeprefix("result") for path in self._paths]
        keys = keys if len(keys) == len(self._arrays) else range(len(self._arrays))
        return tuple(zip(keys, self._arrays, strict=True)), self._paths

    @classmethod
    def tree_unflatten(cls, paths, arrays):
        return cls(arrays, paths)


def _compiled_memory(eqn: JaxprEqn) -> Memory | None:
    inner = eqn.params["jaxpr"]
    paths = tuple(inner.jaxpr.debug_info.result_paths or ())

    # Its name and its results' are as in a run, so that a cache of programs knows it.
    def program(*arrays):
        return _Results(jaxpr_as_fun(inner)(*arrays), paths)

    program.__name__ = eqn.params["name"]
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    donated = [i for i, d in enumerate(eqn.params["donated_invars"]) if d]
    return memory_analysis(program, *shapes, donate=donated)
