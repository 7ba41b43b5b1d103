"""How many operations a program takes.

Functions are wrapped from outside; nothing here knows models or methods. Operations are counted
on the jaxpr, which needs no backend and sees into loops and kernels; `xla_flops` is XLA's count of
the same program, to check against.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal


class Flops(NamedTuple):
    """Operations of a program. Add them with `+`, repeat them with `*`.

    total: matrix products, element-wise operations and reductions.
    matmul: the matrix products in it, 2 for each multiply-add.
    transcendentals: exp, log, sin, cos, sqrt, pow, ...: one a number, not part of `total`.
    """

    total: int = 0
    matmul: int = 0
    transcendentals: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times: int) -> "Flops":
        return Flops(*(a * times for a in self))

    __rmul__ = __mul__


def count_flops(fn: Callable, *args: Any, **kwargs: Any) -> Flops:
    """Counts the operations of `fn(*args, **kwargs)` on its jaxpr; nothing runs or compiles.

    Products are exact; an element-wise operation (type conversions and selects too, as in XLA)
    counts one for each number it puts out, a reduction, running sum, argmax or top_k one for each
    it takes in, a sort its comparisons; moving data is free. Loops count by their length, the
    dearest branch of a conditional, the body of a shard_map on every device: the work of the whole
    mesh. What no output needs is not counted, as it is not run (the value under `jax.grad`).
    A Pallas call counts its own cost estimate, in the total only: it does not say what part is
    products. cuDNN's attention counts its products over all slots, masked or not.

    Arguments are pytrees of arrays or ShapeDtypeStructs; static values belong in a closure.

    Raises: NotImplementedError naming the primitive, for one it does not know, a loop whose number
      of steps depends on data, or a Pallas call without an estimate.
    """
    jaxpr = jax.make_jaxpr(fn)(*args, **kwargs).jaxpr
    return _walk(jaxpr, [True] * len(jaxpr.outvars))[0]


def _walk(jaxpr: Jaxpr, used: Sequence[bool]) -> tuple[Flops, list[bool]]:
    """Operations that the `used` outputs of a jaxpr take, and which of its inputs they need."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # a ClosedJaxpr holds one
    live = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and is_var(v)}
    flops = Flops()
    for eqn in reversed(jaxpr.eqns):
        used_here = [v in live for v in eqn.outvars]
        if not any(used_here) and not eqn.effects:
            continue
        name = eqn.primitive.name
        if name in _INNER:
            cost, needed = _INNER[name](eqn, used_here)
        elif name in _LEAVES:
            cost, needed = _LEAVES[name](eqn), [True] * len(eqn.invars)
        else:
            target = eqn.params.get("target_name", "")
            raise NotImplementedError(
                f"count_flops does not know the primitive {name!r} {target}: add it to _LEAVES"
                " (or to _INNER, if it holds a program) in kvpacket_jax/measure/flops.py"
            )
        flops += cost
        live |= {v for v, n in zip(eqn.invars, needed, strict=True) if n and is_var(v)}
    return flops, [v in live for v in jaxpr.invars]


def is_var(v: Any) -> bool:
    return not isinstance(v, Literal)


def _size(variables: Sequence[Any]) -> int:
    return sum(math.prod(v.aval.shape) for v in variables)


def _integer_pow(eqn: JaxprEqn) -> Flops:
    y = abs(eqn.params["y"])  # squarings, products of them, and a division if y < 0
    products = max(y.bit_length() - 1, 0) + max(y.bit_count() - 1, 0) + (eqn.params["y"] < 0)
    return Flops(products * _size(eqn.outvars))


def _sort(eqn: JaxprEqn) -> Flops:
    length = eqn.invars[0].aval.shape[eqn.params["dimension"]]
    return Flops(_size(eqn.invars[:1]) * max(length - 1, 0).bit_length())


def _dot_general(eqn: JaxprEqn) -> Flops:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    summed = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
    flops = 2 * _size(eqn.outvars) * summed
    return Flops(flops, flops)


def _pallas_call(eqn: JaxprEqn) -> Flops:
    cost, name = eqn.params["cost_estimate"], eqn.params.get("name") or ""
    if cost is None:
        raise NotImplementedError(f"pallas_call {name} has no cost_estimate: give it one to count")
    return Flops(cost.flops, 0, cost.transcendentals)


def _cudnn_attention(eqn: JaxprEqn, with_qk: int = 1, with_v: int = 1) -> Flops:
    """Products over all of [B, N, T, S], with the head dim of queries and keys or of values."""
    q, k, v = (x.aval.shape for x in eqn.invars[:3])
    slots = k[1 if eqn.params["layout"] == 0 else 2]  # AttentionLayout: BTNH is 0, BNTH is 1
    flops = 2 * math.prod(q[:3]) * slots * (with_qk * q[3] + with_v * v[3])
    return Flops(flops, flops)


_LEAVES: dict[str, Callable[[JaxprEqn], Flops]] = {
    **dict.fromkeys(
        "add add_any sub mul div rem max min neg abs sign floor ceil round is_finite square clamp"
        " select_n eq ne lt le gt ge eq_to lt_to le_to and or xor not shift_left"
        " shift_right_logical shift_right_arithmetic population_count convert_element_type"
        " reduce_precision".split(),
        lambda eqn: Flops(_size(eqn.outvars)),
    ),
    **dict.fromkeys(
        "exp exp2 expm1 log log1p log2 tanh sin cos tan asin acos atan atan2 sinh cosh asinh acosh"
        " atanh sqrt rsqrt cbrt pow erf erfc erf_inv lgamma digamma".split(),
        lambda eqn: Flops(transcendentals=_size(eqn.outvars)),
    ),
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
        " cumsum cumprod cummax cummin top_k psum psum_invariant pmax pmin reduce_scatter".split(),
        lambda eqn: Flops(_size(eqn.invars)),
    ),
    **dict.fromkeys(
        "scatter-add scatter-sub scatter-mul scatter-min scatter-max".split(),
        lambda eqn: Flops(_size(eqn.invars[2:])),  # operand, indices, updates
    ),
    **dict.fromkeys(
        "reshape broadcast_in_dim broadcast_to transpose squeeze expand_dims concatenate stack"
        " unstack split tile pad rev slice dynamic_slice dynamic_update_slice gather scatter iota"
        " empty zeros_like copy copy_p device_put stop_gradient optimization_barrier name"
        " sharding_constraint layout_constraint reshard mesh_cast axis_index platform_index pvary"
        " pbroadcast all_gather all_gather_invariant all_to_all ppermute"
        # Where XLA counts one a number, for reading the same bits as another type.
        " bitcast_convert_type".split(),
        lambda eqn: Flops(),
    ),
    # 1 / (1 + exp(-x)); (1 + x) * (1 - x)
    "logistic": lambda eqn: Flops(3 * _size(eqn.outvars), 0, _size(eqn.outvars)),
    "one_minus_square": lambda eqn: Flops(3 * _size(eqn.outvars)),
    "integer_pow": _integer_pow,
    "sort": _sort,
    "dot_general": _dot_general,
    "pallas_call": _pallas_call,
    "dot_product_attention_fwd_wrapper": _cudnn_attention,
    # The scores again; then the gradients of q and k, and those of the weights and of v.
    "dot_product_attention_bwd_wrapper": lambda eqn: _cudnn_attention(eqn, 3, 2),
}


# Primitives that hold programs: (eqn, used outputs) -> (Flops, needed inputs).
def _call(eqn: JaxprEqn, used: list[bool]) -> tuple[Flops, list[bool]]:
    return _walk(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), used)


def _cond(eqn: JaxprEqn, used: list[bool]) -> tuple[Flops, list[bool]]:
    costs, needed = zip(*(_walk(b, used) for b in eqn.params["branches"]), strict=True)
    return max(costs), [True] + [any(n) for n in zip(*needed, strict=True)]


def _scan(eqn: JaxprEqn, used: list[bool]) -> tuple[Flops, list[bool]]:
    if "num_carry" in eqn.params:
        consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    else:  # from jax 0.11
        consts, carries, _ = map(len, eqn.params["ft_in"].unpack())
    while True:  # a carry is needed if it is used after the loop or by a later step
        cost, needed = _walk(eqn.params["jaxpr"], used)
        back = needed[consts : consts + carries]
        carry = [a or b for a, b in zip(used[:carries], back, strict=True)]
        if carry == used[:carries]:
            return cost * eqn.params["length"], needed
        used = carry + used[carries:]


def _while(eqn: JaxprEqn, used: list[bool]) -> tuple[Flops, list[bool]]:
    """Counts `while i < stop: i += step` with start, stop and step written in the program."""
    cond, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    consts, body_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    try:
        (test,) = cond.eqns
        i = cond.invars[consts:].index(test.invars[0])
        (step,) = (e for e in body.eqns if body.outvars[i] in e.outvars)
        names = test.primitive.name, step.primitive.name
        if names != ("lt", "add") or step.invars[0] != body.invars[body_consts + i]:
            raise ValueError(f"not a counter: {names}")
        bounds = eqn.invars[consts + body_consts + i], test.invars[1], step.invars[1]
        steps = len(range(*(operator.index(x.val) for x in bounds)))
    except (ValueError, AttributeError, TypeError) as error:  # variables have no .val
        raise NotImplementedError(
            "count_flops cannot tell how many steps a 'while' takes: give it a fixed number"
            " (lax.fori_loop with Python bounds, or lax.scan)"
        ) from error
    cost = _walk(cond, [True])[0] + _walk(body, [True] * len(body.outvars))[0]
    return cost * steps, [True] * len(eqn.invars)


def _shard_map(eqn: JaxprEqn, used: list[bool]) -> tuple[Flops, list[bool]]:
    # The body has the shapes of one device; axes left automatic keep their global shapes.
    mesh, axes = eqn.params["mesh"], eqn.params["newly_manual_axes"]
    cost, needed = _walk(eqn.params["jaxpr"], used)
    return cost * math.prod(mesh.shape[a] for a in axes), needed


_INNER: dict[str, Callable[[JaxprEqn, list[bool]], tuple[Flops, list[bool]]]] = {
    **dict.fromkeys(
        "jit closed_call core_call remat2 custom_jvp_call custom_vjp_call".split(), _call
    ),
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "shard_map": _shard_map,
}


# XLA counts a loop's body once, a custom call as nothing, a shard_map for one device.
_MISREAD_BY_XLA = re.compile(r"stablehlo\.while|stablehlo\.custom_call|sdy\.manual_computation")


def xla_flops(fn: Callable, *args: Any) -> float | None:
    """XLA's own count of the program `fn(*args)` lowered (not compiled) for the CPU.

    `args` are pytrees of arrays or ShapeDtypeStructs, of which only shapes and dtypes are used.
    Transcendentals are not in the number. None, never a wrong number, where XLA would misread the
    program (a loop of any length, a custom call, a shard_map: so give it unrolled layers and query
    blocks and plain attention), or the program or this process has no CPU version.
    """
    abstract = jax.eval_shape(lambda *a: a, *args)  # without shardings, so free of devices
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # this process was told to leave the CPU out
        return None
    with jax.default_device(cpu):  # XLA's count belongs to a backend, and only the CPU's has one
        traced = jax.jit(fn).trace(*abstract)
        try:
            lowered = traced.lower(lowering_platforms=("cpu",))
        except (NotImplementedError, ValueError):  # a kernel for other devices
            return None
        cost = lowered.cost_analysis()
    if cost is None or _MISREAD_BY_XLA.search(lowered.as_text()):
        return None
    return max(float(cost.get("flops", 0.0)), 0.0)  # left out if 0; each sharding counts -1


def programs_of(jaxpr: Jaxpr) -> list[tuple[JaxprEqn, list[bool]]]:
    """The programs that a traced function starts one after the other, with the inputs each needs.

    They are its outermost equations: a call of a jitted function, or an operation by itself.
    Programs that no output needs are left out.
    """
    live = {v for v in jaxpr.outvars if is_var(v)}
    programs = []
    for eqn in reversed(jaxpr.eqns):
        used = [v in live for v in eqn.outvars]
        if not any(used) and not eqn.effects:
            continue
        name = eqn.primitive.name
        needed = _INNER[name](eqn, used)[1] if name in _INNER else [True] * len(eqn.invars)
        live |= {v for v, n in zip(eqn.invars, needed, strict=True) if n and is_var(v)}
        programs.append((eqn, needed))
    return programs[::-1]
