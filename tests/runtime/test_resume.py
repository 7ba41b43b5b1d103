"""Work goes on where all that it depends on is what it was; what differs is named."""

import pytest

from kvpacket_jax.runtime import resume


def test_what_differs_is_named_with_both_values():
    stored = {"seed": 0, "methods": ["a", "b"], "steps": 10}
    resume.check(stored, {"seed": 0, "methods": ("a", "b"), "steps": 10}, "w holds a run")
    message = r"^w holds a run: more nothing, not 2; seed 0, not 1\. Give the same"
    with pytest.raises(ValueError, match=message):
        resume.check(stored, stored | {"seed": 1, "more": 2}, "w holds a run")
    with pytest.raises(ValueError, match="steps 10, not nothing"):  # a field that is no more
        resume.check(stored, {"seed": 0, "methods": ("a", "b")}, "w holds a run")


def test_what_differs_is_in_words_not_a_wall_of_digests():
    sets = {"name": "biography", "options": {"num_documents": 5, "num_questions": 10}}
    stored = {"model": "3f" * 32, "examples": "ab" * 32, "dataset": sets, "seed": 0}
    other = {"name": "biography", "options": {"num_documents": 10, "num_questions": 10}}
    present = stored | {"model": "9b" * 32, "dataset": other, "adapter": "none"}
    assert resume.in_words(stored, present) == (
        "adapter nothing, not none; dataset.options.num_documents 5, not 10; "
        "different model (3f3f3f3f, not 9b9b9b9b)"
    )
    many = resume.in_words({str(i): "x" * 1000 for i in range(100)}, {})
    assert len(many) < 1000 and many.endswith("; and 92 more")
    assert resume.in_words(stored, stored) == ""


def test_free_fields_may_differ():
    resume.check({"every": 1, "seed": 0}, {"every": 2, "seed": 0}, "w", free=("every",))
    assert resume.differences({"every": 1}, {"every": 2}) == ["every"]


def test_where_data_lies_does_not_count_and_what_is_called_so_does():
    settings = {"corpus": "a.jsonl", "mixture": {"corpus": {"sets": 3, "options": {"path": "a"}}}}
    moved = {"corpus": "b.jsonl", "mixture": {"corpus": {"sets": 3, "options": {"path": "b"}}}}
    assert resume.wherever(settings) == resume.wherever(moved)
    moved["mixture"]["corpus"]["sets"] = 4
    assert resume.wherever(settings) != resume.wherever(moved)
