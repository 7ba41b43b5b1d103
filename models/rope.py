"""Rotary position embedding: frequencies, angles, rotation and the move by a difference.

Everything about RoPE is here. A head's first half is paired with its second half (Hugging Face's
`rotate_half` form). Angles are exact at any position of the model: a float32 product of position
and frequency is off by 6e-3 rad at 128k, so the position is split in two, cos and sin of the parts
come from tables computed in float64, and the angle sum formulas join them.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.foreign import json_file
from models.foreign.settings import Table

TABLE_ROWS = 512  # positions are split as TABLE_ROWS * high + low
MOST_POSITIONS = 2**24  # of any model; tables are as long
DEFAULT_THETA = 10000.0  # of transformers, for all our families

# Settings of RoPE that may stand at the top of a config.
TOP = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Plain RoPE: frequencies `theta ** (-2i / H)`."""

    theta: float


@dataclasses.dataclass(frozen=True)
class LinearRope(Rope):
    """All positions divided by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope(Rope):
    """Llama-3.1's: long wavelengths divided by `factor`, short ones unchanged, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnRope(Rope):
    """YaRN (arXiv 2309.00071); cos and sin are multiplied by `attention_factor`."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


# The settings of each scheme beside those that all may have.
SCHEMES = {
    "default": "",
    "linear": "factor",
    "llama3": "factor low_freq_factor high_freq_factor",
    "yarn": "factor beta_fast beta_slow attention_factor mscale mscale_all_dim truncate",
}
COMMON = "rope_type type rope_theta original_max_position_embeddings"


def from_hf(hf: dict[str, Any], source: str) -> Rope:
    """RoPE constants of a Hugging Face config dict.

    Raises ValueError, naming `source`, for a scheme or a setting that is not understood, and for
    spellings that contradict each other.
    """
    params = _merged(hf, source)
    if params.get("rope_theta") is None:
        raise ValueError(
            f"{source}: no rope_theta, neither at the top nor in rope_parameters. It is a constant "
            "of the trained model and has no default here."
        )
    kind = _scheme(params, source)

    def number(key: str, default: float | None = None) -> float:
        value = params.get(key) if params.get(key) is not None else default
        if value is None:
            raise ValueError(
                f"{source}: RoPE of type {kind!r} needs {key!r}; found {json_file.brief(params)}."
            )
        return json_file.number(source, key, value)

    def original(default: int | None = None) -> int:
        value = params.get(key := "original_max_position_embeddings", default)
        if value is None:
            raise ValueError(
                f"{source}: RoPE of type {kind!r} needs {key!r}; found {json_file.brief(params)}."
            )
        return json_file.integer(source, key, value, 1, MOST_POSITIONS)

    theta = number("rope_theta")
    if kind == "default":
        return Rope(theta)
    factor = number("factor")
    if kind == "linear":
        return LinearRope(theta, factor)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        _check_ascending(source, low_freq_factor=low, high_freq_factor=high)
        return Llama3Rope(theta, factor, low, high, original())
    fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
    _check_ascending(source, beta_slow=slow, beta_fast=fast)
    _check_ascending(source, one=1.0, rope_theta=theta)
    truncate = json_file.flag(source, "truncate", params.get("truncate", True))
    amplitude = json_file.number(
        source, "attention_factor", _yarn_attention_factor(factor, params, number)
    )
    rope = YarnRope(
        theta, factor, original(hf.get("max_position_embeddings")), fast, slow, amplitude, truncate
    )
    if max_positions(rope, 1) > MOST_POSITIONS:
        raise ValueError(
            f"{source}: a context of {max_positions(rope, 1):,} positions is too long; the most is "
            f"{MOST_POSITIONS:,}."
        )
    return rope


def _scheme(params: dict[str, Any], source: str) -> str:
    """The name of the scheme. ValueError for another one, or a setting that it does not have."""
    kind = params["rope_type"]
    if not isinstance(kind, str) or kind not in SCHEMES:
        shown = repr(kind) if isinstance(kind, str) and len(kind) < 60 else json_file.brief(kind)
        raise ValueError(
            f"{source}: RoPE type {shown} is not supported. Supported: {', '.join(SCHEMES)}. "
            "(Dynamic NTK changes its frequencies with the length, so cached keys could not be "
            "moved.)"
        )
    known = f"{COMMON} {SCHEMES[kind]}".split()
    table = Table(" ".join(known), "finetuned", {"partial_rotary_factor": (1, 1.0)}, "")
    table.check(f"{source}, RoPE of type {kind!r}", params)
    return kind


def _merged(hf: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of RoPE from all places where configs have them; one value for each.

    As transformers 5 has it, `rope_scaling` added to a config that has plain `rope_parameters`
    decides the type. Raises ValueError where two places differ in anything else.
    """
    old, new = (_object(hf, key, source) for key in ("rope_scaling", "rope_parameters"))
    if old.get("rope_type", "default") != "default" and new.get("rope_type") == "default":
        del new["rope_type"]
    # transformers drops the rest of rope_parameters then, and takes its own base if it was there.
    if old and set(new) - set(old) - {"rope_type", "rope_theta"}:
        raise ValueError(
            f"{source}: rope_scaling stands beside rope_parameters that say more "
            f"({json_file.brief(new)}). Put all settings in one of them."
        )
    dropped = "rope_theta" in new and "rope_theta" not in old and hf.get("rope_theta") is None
    if old and dropped and new["rope_theta"] != DEFAULT_THETA:
        raise ValueError(
            f"{source}: rope_scaling stands beside rope_parameters, whose rope_theta "
            f"{json_file.brief(new['rope_theta'])} other programs would not read. Put all settings "
            "in rope_parameters."
        )
    merged: dict[str, Any] = {}
    top = {key: hf.get(key) for key in TOP if hf.get(key) is not None}
    places = {"rope_scaling": old, "rope_parameters": new, "the top level": top}
    for place, settings in places.items():
        for key, value in settings.items():
            if key in merged and merged[key] != value:
                raise ValueError(
                    f"{source}: {key!r} is {json_file.brief(value)} at {place} and "
                    f"{json_file.brief(merged[key])} elsewhere. Remove the one that is not meant."
                )
            merged[key] = value
    return {"rope_type": "default"} | merged


def _object(hf: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    """The object under `key` without its nulls, its type under `rope_type` alone."""
    value = hf.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {key!r} must be an object, found {json_file.brief(value)}.")
    settings = {k: v for k, v in value.items() if v is not None}
    if not settings:
        return {}
    kinds = [settings.pop(k) for k in ("rope_type", "type") if k in settings] or ["default"]
    if kinds[0] != kinds[-1]:
        raise ValueError(
            f"{source}: {key!r} has rope_type {json_file.brief(kinds[0])} and type "
            f"{json_file.brief(kinds[-1])}. Remove the one that is not meant."
        )
    return settings | {"rope_type": kinds[0]}


def _check_ascending(source: str, **pair: float) -> None:
    (first, low), (second, high) = pair.items()
    if low >= high:
        raise ValueError(f"{source}: RoPE needs {first} ({low}) below {second} ({high}).")


def _yarn_attention_factor(factor: float, params: dict[str, Any], number) -> float:
    # As transformers has it: given, or from mscale and mscale_all_dim, or 0.1 ln(factor) + 1.
    def mscale(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    if params.get("attention_factor") is not None:
        return number("attention_factor")
    if params.get("mscale") and params.get("mscale_all_dim"):
        return mscale(number("mscale")) / mscale(number("mscale_all_dim"))
    return mscale(1.0)


def max_positions(rope: Rope, stated: int) -> int:
    """Positions the model may use: YaRN stretches its original context by the factor."""
    if isinstance(rope, YarnRope):
        return max(stated, int(rope.original_max_positions * rope.factor))
    return stated


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position, float64 `[H/2]`, with the scheme's scaling applied."""
    half = head_dim // 2
    plain = rope.theta ** -(np.arange(half, dtype=np.float64) / half)
    if isinstance(rope, LinearRope):
        return plain / rope.factor
    if isinstance(rope, Llama3Rope):
        turns = rope.original_max_positions * plain / (2 * np.pi)
        ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(ramp, 0, 1)
        return keep * plain + (1 - keep) * plain / rope.factor
    if isinstance(rope, YarnRope):

        def dimension(turns: float) -> float:
            ratio = rope.original_max_positions / (turns * 2 * math.pi)
            return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

        low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0, 1)
        return plain * (1 - ramp) + plain / rope.factor * ramp
    return plain


def amplitude(rope: Rope) -> float:
    """What cos and sin are multiplied by; divided out of a move, so that it stays a rotation."""
    return rope.attention_factor if isinstance(rope, YarnRope) else 1.0


@functools.lru_cache(maxsize=32)
def _tables(rope: Rope, head_dim: int, positions: int) -> tuple[np.ndarray, ...]:
    freq = frequencies(rope, head_dim)
    low = np.arange(TABLE_ROWS)[:, None] * freq
    high = np.arange(-(-positions // TABLE_ROWS) + 1)[:, None] * (TABLE_ROWS * freq)
    return tuple(f(a).astype(np.float32) for a in (low, high) for f in (np.cos, np.sin))


def cos_sin(rope: Rope, head_dim: int, positions: jax.Array, limit: int):
    """cos and sin of the angles at `positions` (int32, any shape, negative ones too), float32.

    Returns two arrays `[..., H/2]`, exact to 1e-6 for |position| < `limit` (the model's
    `max_positions`); amplitude 1. Callers refuse longer sequences: the tables end there.
    """
    cos_low, sin_low, cos_high, sin_high = _tables(rope, head_dim, limit)
    high, low = jnp.divmod(jnp.abs(positions), TABLE_ROWS)
    cl, sl, ch, sh = (jnp.asarray(t) for t in (cos_low, sin_low, cos_high, sin_high))
    cl, sl, ch, sh = cl[low], sl[low], ch[high], sh[high]
    sign = jnp.sign(positions).astype(jnp.float32)[..., None]
    return ch * cl - sh * sl, sign * (sh * cl + ch * sl)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads `[..., H]` by angles whose cos and sin broadcast against `[..., H/2]`."""
    x = x.astype(jnp.float32)
    first, second = jnp.split(x, 2, axis=-1)
    join = lambda *halves: jnp.concatenate(halves, axis=-1)  # noqa: E731
    # Joined first: XLA for CPUs computes results that are joined afterwards 20 times slower.
    return x * join(cos, cos) + join(second, first) * join(-sin, sin)


def rotate_heads(config, x_BxTxNxH: jax.Array, positions_BxT: jax.Array) -> jax.Array:
    """Queries or keys at their positions, float32, scaled by the scheme's amplitude."""
    cos, sin = cos_sin(config.rope, config.head_dim, positions_BxT, config.max_positions)
    scale = amplitude(config.rope)
    return rotate(x_BxTxNxH, scale * cos[..., None, :], scale * sin[..., None, :])


def turns(config, differences: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin `[…, H/2]` that turn queries back by `differences`, int32 of any shape.

    A query that was turned back scores with a key as if the key had been moved by the difference.
    """
    cos, sin = cos_sin(config.rope, config.head_dim, differences, config.max_positions)
    return cos, -sin


def move(config, k: jax.Array, difference: jax.Array) -> jax.Array:
    """Keys `[..., K, H]` moved by `difference` positions, in their own dtype.

    `difference` is an int32 scalar, or one that broadcasts against `[..., K]`: `[S, 1]` for slots.
    Scores depend on differences of positions only, so one rotation moves a key from any position.
    Keys of width 0 (of layers that cache none) have nothing to move.
    """
    if not k.shape[-1]:
        return k
    cos, sin = cos_sin(config.rope, config.head_dim, difference, config.max_positions)
    return rotate(k, cos, sin).astype(k.dtype)
