"""The document most like a question is read first."""

from kvpacket_jax import similarity
from kvpacket_jax.data import Example, Question
from kvpacket_jax.data.order import best_first

DOCUMENTS = ("The ferry to Lune leaves at noon.", "The bus is red.", "Ada keeps the pool.")


def test_questions_about_the_same_document_stay_together():
    questions = (
        Question("Who keeps the pool?", ("Ada",), info={"documents": [2]}),
        Question("When does the ferry leave?", ("noon",), info={"documents": [0]}),
        Question("Is the pool Ada's?", ("yes",), info={"documents": [0, 2], "hops": 2}),
        Question("Wer?", ("Ada",)),  # like none: the order stays
    )
    pool, ferry = best_first(Example("it", DOCUMENTS, questions))
    assert pool.documents == (DOCUMENTS[2], *DOCUMENTS[:2]) and ferry.documents == DOCUMENTS
    assert [q.text for q in pool.questions] == [questions[0].text, questions[2].text]
    assert [q.info["documents"] for q in pool.questions] == [[0], [0, 1]]
    assert ferry.questions == (questions[1], questions[3]) and pool.questions[1].info["hops"] == 2
    assert len({pool.id, ferry.id, "it"}) == 3


def test_equal_documents_keep_their_order():
    assert similarity.closest_to(["the same", "the same", "other"], "the same?") == 0
