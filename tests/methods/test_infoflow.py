"""InfoFlow: the published code's selection, order and cache, and what it equals with everything."""

import json

import numpy as np
import pytest

from tests.support.golden import GOLDEN
from tests.support.methods import check, golden_case, run

INDEX = json.loads((GOLDEN / "infoflow.json").read_text())
LABELS = [
    pytest.param(case_name, label, id=f"{case_name}-{label}")
    for case_name, case in INDEX.items()
    for label in case["methods"]
]


@pytest.mark.parametrize(("case_name", "label"), LABELS)
def test_equals_published_code(tiny, case_name, label):
    published = INDEX[case_name]["methods"][label]
    case = golden_case(tiny, case_name)
    case = case._replace(arrays=np.load(GOLDEN / INDEX[case_name]["file"]))
    only = int("subquery" in label)  # query_ids[1:-1] are scored
    first, *more = published["layers"]
    settings = {
        "ratio": published["ratio"],
        "first_layer": first,
        "num_layers": 1 + len(more),
        "leading": only,
        "trailing": only,
        "reorder": published["strategy"] == "double_guided",
        "published": True,
    }
    prepared, cache, first, greedy = run(case, "infoflow", settings)
    assert prepared.prefilled is None
    assert prepared.query_start == case.arrays[f"{label}/query_pos"][0]
    info = {name: np.asarray(array) for name, array in prepared.info.items()}
    check_choice(case, label, info["scores"], "scores", info["selected"], "recomputed")
    if settings["reorder"]:
        actual = info["first_scores"], "scores_first", info["first_selected"], "selected_first"
        check_choice(case, label, *actual)
        expected = case.arrays[f"{label}/chunk_order"]
        assert info["order"][: len(expected)].tolist() == expected.tolist()
    check(case, label, cache, first, greedy)


def check_choice(case, label: str, scores, their_scores: str, selected, their_selected: str):
    expected = case.arrays[f"{label}/{their_scores}"]
    np.testing.assert_allclose(scores[: len(expected)], expected, atol=2e-5 * expected.max())
    expected_rows = case.arrays[f"{label}/{their_selected}"].tolist()
    assert selected[selected < len(expected)].tolist() == expected_rows


def test_everything_recomputed_in_another_order_is_full_recompute_in_that_order(tiny):
    case = golden_case(tiny, "llama31_A")
    # Enough for all that are not exact already, too little to make the documents' shares equal.
    prepared, (k, v), first, greedy = run(case, "infoflow", {"ratio": 0.85, "reorder": True})
    order = np.asarray(prepared.info["order"])[: len(case.documents)].tolist()
    assert order != sorted(order)
    reordered = case._replace(documents=[case.documents[i] for i in order])
    _, expected, expected_first, expected_greedy = run(reordered, "full_recompute", {})
    for a, b in zip((k, v), expected, strict=True):
        length = prepared.query_start
        np.testing.assert_allclose(a[:, :, :length], b[:, :, :length], atol=2e-4)
    np.testing.assert_allclose(first, expected_first, atol=1e-3)
    assert greedy == expected_greedy


def test_no_exact_token_is_chosen_unless_as_published(tiny):
    case = golden_case(tiny, "llama31_A")
    for published in (True, False):
        settings = {"ratio": 0.9, "reorder": True, "published": published}
        prepared, *_ = run(case, "infoflow", settings)
        selected = np.asarray(prepared.info["selected"])
        front = case.documents[int(prepared.info["order"][0])]
        assert (selected[0] < len(case.preamble)) == published
        assert (selected[0] < len(case.preamble) + len(front)) == published


def test_question_tokens_see_no_later_ones_unless_as_published(tiny):
    case = golden_case(tiny, "qwen2_A")

    def scores(**settings):
        prepared, *_ = run(case, "infoflow", settings)
        return np.asarray(prepared.info["scores"])[: prepared.query_start]

    # One question token sees itself only, as published or not.
    one = {"leading": 2, "trailing": len(case.query) - 3}
    np.testing.assert_allclose(scores(**one, published=True), scores(**one), atol=1e-6)
    all_scores = scores()
    # Rows that see fewer question tokens have more attention left for the context.
    assert all_scores.sum() > 1.001 * scores(published=True).sum()


def test_a_query_of_template_tokens_only_is_refused(tiny):
    case = golden_case(tiny, "qwen2_A")
    for leading, trailing in ((4, 2), (0, 8), (8, 0)):  # of 6 tokens
        said = f"has 6 tokens; without {leading} leading and {trailing} trailing"
        with pytest.raises(ValueError, match=said):
            run(case, "infoflow", {"leading": leading, "trailing": trailing})
