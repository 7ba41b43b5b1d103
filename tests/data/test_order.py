"""The document most like a question is read first."""

from kvpacket_jax import similarity
from kvpacket_jax.data import Example, Question
from kvpacket_jax.data.order import TURNS, PartlyBestFirst, best_first, in_turn

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


def test_a_part_of_every_example_comes_before_another_of_any():
    pool, ferry = Question("Who keeps the pool?", ("Ada",)), Question("Ferry at noon?", ("yes",))
    lune = Question("To Lune, the ferry?", ("yes",))
    questions = {"a": (pool, ferry, lune), "b": (pool,), "c": (pool, ferry)}
    source = [Example(id, DOCUMENTS, asked) for id, asked in questions.items()]
    parts = [*in_turn(source)]
    assert [part.id[0] for part in parts] == ["a", "b", "c", "a", "c"]
    assert parts == [*in_turn(source)]
    for part in parts:
        about = 2 if part.questions[0] == pool else 0
        assert part.documents[0] == DOCUMENTS[about] and len(part.documents) == 3
    for id, asked in questions.items():
        assert {q for part in parts if part.id[0] == id for q in part.questions} == {*asked}


def test_a_share_of_a_source_is_read_best_first():
    question = Question("Who keeps the pool?", ("Ada",))
    source = [Example(str(i), DOCUMENTS, (question,)) for i in range(50)]
    turns = []
    for share, number in ((1.0, 50), (0.0, 0), (0.7, 35)):
        whole = PartlyBestFirst(source, share)
        assert len(whole) == TURNS * 50
        for turn in range(TURNS):
            read = [whole[turn * 50 + i] for i in range(50)]
            moved = [i for i, example in enumerate(read) if example.documents[0] == DOCUMENTS[2]]
            assert len(moved) == number
            assert all(read[i] == source[i] for i in range(50) if i not in moved)
            turns.append(moved)
    assert len(set(map(tuple, turns[-TURNS:]))) > 1, "the others have their turn"


def test_every_part_has_its_turn():
    questions = tuple(
        Question(text, ("it",)) for text in ("The pool, whose?", "The ferry, when?", "Red bus?")
    )
    source = [Example(str(i), DOCUMENTS, questions) for i in range(4)]
    read = PartlyBestFirst(source, 1.0)
    for i in range(4):
        firsts = [read[4 * turn + i].documents[0] for turn in range(3)]
        assert {*firsts} == {*DOCUMENTS}
    assert PartlyBestFirst([Example("none", DOCUMENTS, ())], 1.0)[0].documents == DOCUMENTS


def test_equal_documents_keep_their_order():
    assert similarity.closest_to(["the same", "the same", "other"], "the same?") == 0
