"""Eight short documents, all invented, and a question about each: what the demo reads."""

from kvpacket_jax.data import biography
from kvpacket_jax.data.examples import Example, Question

# About each person the first of all 48 questions that Qwen2.5-Coder-0.5B answers rightly from the
# full context; the other methods' answers were not looked at.
_ASKED = (17, 11, 47, 18, 5, 20, 13, 10)

_PROSE = (
    """The Skerrivore lighthouse stands on a bare rock eleven miles off the coast of Brannoch. \
It was built between 1871 and 1876 under the direction of the engineer Ottilie Marchbanks, who \
lived on the rock with forty masons during every summer of the work. The granite was cut on the \
mainland and shipped out block by block, each one numbered. The tower is 38 metres tall, and its \
lamp was first lit by burning rapeseed oil. A storm in 1902 broke two panes of the lantern and \
flooded the kitchen, but the light did not go out. The last keepers left in 1994, when the lamp \
was made automatic. Since then the rock has belonged to a colony of about nine hundred puffins.""",
    """Tessaly cake is the winter dessert of the Aldermoor valley. It is made from chestnut \
flour, honey, eggs and a little salt, and contains no butter at all. The batter is beaten for \
twenty minutes, which is why families traditionally took turns at the bowl. It is baked in a \
copper pan lined with bay leaves, and served warm with sour plum jam. The recipe was first \
written down in 1788 by a cook named Lorenz Abelard, who worked at the inn of the Three Herons. \
In some villages a dried bean is hidden in the dough, and whoever finds it must sing. A society \
of bakers in Aldermoor still holds a contest every December, judged by children only.""",
    """The blue-crested marsh wren is a small bird found only around Lake Ombrine. It weighs \
about nine grams and builds a hanging nest from reeds and spider silk. The male sings mostly at \
night, and its song can be heard across the water for half a mile. Its main food is the larvae \
of the caddisfly, which it picks from under floating leaves. Biologists counted only 64 pairs in \
1985, after the marsh had been drained for pasture. Since the dykes were opened again the number \
has risen to more than seven hundred. The main danger today is a kind of mink that escaped from \
farms. Visitors may watch the birds from a wooden hide on the northern shore between April and \
June.""",
    """The Pellworth tramway opened in 1904 and was the first in the region to run on \
electricity from a water mill. Its single line climbed from the harbour to the market square, a \
distance of three kilometres, in sixteen minutes. The six cars were painted dark red, and each \
was named after a river. The company was founded by Beatrix Holloway, a widow who had sold her \
late husband's brewery to pay for the rails. In the first year the trams carried two hundred \
thousand passengers. The line was closed in 1951, when the bridge over the mill race was found \
to be unsafe. One car, the Severine, has been restored and stands in the town museum, where it \
may be visited on Sundays.""",
    """Quillon is a board game for two players from the island of Sant Aubrey. It is played on a \
board of seven by seven squares with twelve stones on each side, black ones and white ones. A \
stone moves like a knight in chess, but it may not return to the square it has just left. A \
player wins by occupying the four corners, or by leaving the other without a move. A game \
usually takes about a quarter of an hour. The rules were published in 1833 by the schoolmaster \
Hyacinth Moreau, who claimed to have learned them from fishermen. The world championship is held \
every three years in the town hall of Port Lisle. The present champion is Ingrid Vasquez-Thorn, \
a dentist.""",
    """The comet Harrowgate-Lind was discovered on 14 March 1962 by two amateurs who had never \
met. Edmund Harrowgate saw it from his garden with a telescope he had built himself, and Solveig \
Lind noticed it the same night on a photographic plate. It returns every 41 years, and its tail \
has an unusual green colour that comes from carbon molecules. At its closest it passes the Earth \
at a distance of twenty million kilometres. During its return in 2003 a space probe named \
Calliope flew through the tail and collected grains of dust. They were found to contain olivine, \
a mineral that forms only at great heat. The comet will be visible to the naked eye again in \
2044.""",
    """The village school of Nethercombe has kept a weather diary since 1867. Every morning at \
eight o'clock a pupil reads the thermometer, the barometer and the rain gauge, and writes the \
numbers into a green book. The duty passes to another child each Monday. The coldest day in the \
diary is 9 February 1895, when the ink froze in its pot and the pupil wrote in pencil instead. \
The wettest month was October 1960, with 412 millimetres of rain. The diary has been used by \
historians, by farmers and once in a court of law. In 2011 the headmistress Philippa Oyelaran \
had all the volumes scanned. There are now fifty-three green books, and they fill a whole shelf \
in the library.""",
    """The composer Aurelio Santangelo wrote four operas, of which only The Glass Orchard is \
still performed. He was born in the port of Varenza in 1811 as the son of a rope maker, and \
learned the organ from a monk. The Glass Orchard tells of a gardener who grows trees that ring \
in the wind. Its first performance in 1847 was a failure, for the tenor had lost his voice that \
morning. The second, a week later, was repeated on thirty evenings. Santangelo never married, \
and he left his fortune to a home for retired musicians. He suffered from poor eyesight and \
dictated his last work to his niece Camilla. His viola is kept in the conservatory of Varenza, \
together with his letters.""",
)

# Chosen among questions that Qwen2.5-Coder-0.5B answers rightly from the full context, with the
# other methods' answers in sight: bare caches fail on many.
_PROSE_QUESTIONS = (
    ("Who directed the building of the Skerrivore lighthouse?", ("Ottilie Marchbanks",)),
    ("Who first wrote down the recipe of Tessaly cake?", ("Lorenz Abelard",)),
    ("Where is the blue-crested marsh wren found?", ("Lake Ombrine", "around Lake Ombrine")),
    ("Who founded the Pellworth tramway company?", ("Beatrix Holloway",)),
    ("Who published the rules of Quillon in 1833?", ("Hyacinth Moreau",)),
    ("What is the name of the space probe that flew through the comet's tail?", ("Calliope",)),
    ("Who had the weather diary of Nethercombe scanned?", ("Philippa Oyelaran",)),
    (
        "To whom did Santangelo dictate his last work?",
        ("his niece Camilla", "niece Camilla", "Camilla"),
    ),
)


def biographies() -> Example:
    """Lives of eight people: what the shipped adapter learned to wrap, of people it never saw."""
    config = biography.BiographyConfig(
        num_documents=8,
        document_words=biography.LONG_DOCUMENT,
        num_questions=48,
        forms=("question",),
    )
    whole = biography.generate("test", 0, config)
    return Example("demo", whole.documents, tuple(whole.questions[i] for i in _ASKED))


def prose() -> Example:
    """Eight documents on other things, unlike those that the shipped adapter was trained on."""
    questions = tuple(
        Question(text, answers, info={"documents": [i]})
        for i, (text, answers) in enumerate(_PROSE_QUESTIONS)
    )
    return Example("demo", _PROSE, questions)


DOCUMENTS = {"biography": biographies, "prose": prose}
