"""Work goes on where all that it depends on is what it was; what differs is named."""

import pytest

from kvpacket_jax.runtime import resume


def test_what_differs_is_named_with_both_values():
    stored = {"seed": 0, "methods": ["a", "b"], "steps": 10}
    resume.check(stored, {"seed": 0, "methods": ("a", "b"), "steps": 10}, "w holds a run")
    message = r"^w holds a run; more, seed differ: \{'more': None, 'seed': 0\}, not .*'seed': 1\}"
    with pytest.raises(ValueError, match=message):
        resume.check(stored, stored | {"seed": 1, "more": 2}, "w holds a run")
    with pytest.raises(ValueError, match="steps differ"):  # a field that is no more
        resume.check(stored, {"seed": 0, "methods": ("a", "b")}, "w holds a run")


def test_free_fields_may_differ():
    resume.check({"every": 1, "seed": 0}, {"every": 2, "seed": 0}, "w", free=("every",))
    assert resume.differences({"every": 1}, {"every": 2}) == ["every"]
