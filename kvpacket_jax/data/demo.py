"""Ten short documents of several kinds, all invented, and a question about each, for the demo."""

from kvpacket_jax.data.examples import Example, Question
from kvpacket_jax.data.synthetic import biography

_LIGHTHOUSE = """\
The Skerrivore lighthouse stands on a bare rock eleven miles off the coast of Brannoch. It was \
built between 1871 and 1876 under the direction of the engineer Ottilie Marchbanks, who lived on \
the rock with forty masons during every summer of the work. The granite was cut on the mainland \
and shipped out block by block, each one numbered. The tower is 38 metres tall, and its lamp was \
first lit by burning rapeseed oil. A storm in 1902 broke two panes of the lantern and flooded the \
kitchen, but the light did not go out. The last keepers left in 1994, when the lamp was made \
automatic. Since then the rock has belonged to a colony of about nine hundred puffins."""

_FERRY = """\
ISLE OF MORWEN FERRIES - winter timetable, 3 November to 27 March

Brannoch pier     dep 06:50   dep 11:15   dep 16:40
Kessock landing   dep 07:25   dep 11:50   dep 17:15
Morwen harbour    arr 08:10   arr 12:35   arr 18:00

No sailing at 06:50 on Sundays and holidays. Adults 8.40, children under fourteen 3.60, bicycles \
2.00, cars 27.50 with driver. In a northerly gale ask the harbour office (0555-2281) before you \
set out. Lost property is kept at Kessock landing by Mr Ferdinand Oake."""

_POOL = """\
HOLLINS BATHS - prices and rules

Single swim 4.20; after 19:00 2.80; card of ten 36.00. Towels are lent for 1.50 against a deposit \
of 5.00. Lockers take a one-crown coin. The sauna, 9.70, is for women on Tuesdays and mixed on \
all other days. Diving from the five-metre board is allowed on Wednesdays between 17:00 and 18:30 \
only, when Ludmila Farrow is on duty. Glass, balls and musical instruments stay outside. The \
water is kept at 26.5 degrees."""

_EMAIL = """\
From: Hester Quillfeather, Ashdown Nurseries
To: Bertram Lyle
Subject: your order 40817

Dear Mr Lyle, the eleven pear trees will be sent on 19 November, bare-rooted and wrapped in \
straw. The quince you asked for is sold out until spring; may I offer the variety "Lescovac" \
instead? It bears a year earlier and costs the same. Our driver, Osric, telephones an hour before \
he comes. Please have the holes dug, sixty centimetres deep. The invoice is due within thirty \
days. With kind regards, Hester Quillfeather"""

_COMET = """\
The comet Harrowgate-Lind was discovered on 14 March 1962 by two amateurs who had never met. \
Edmund Harrowgate saw it from his garden with a telescope he had built himself, and Solveig Lind \
noticed it the same night on a photographic plate. It returns every 41 years, and its tail has an \
unusual green colour that comes from carbon molecules. At its closest it passes the Earth at a \
distance of twenty million kilometres. During its return in 2003 a space probe named Calliope \
flew through the tail and collected grains of dust. They were found to contain olivine, a mineral \
that forms only at great heat. The comet will be visible to the naked eye again in 2044."""

_MINUTES = """\
Allotment society Long Furrow, minutes of the meeting of 4 May

Present: 23 members, in the chair Agatha Brindle, minutes by Tomasz Weir. 1. The treasurer \
reported a balance of 1,932 crowns. 2. It was resolved by 19 votes to 4 to replace the pump; the \
firm of Garrick and Daughters is to do it for 780 crowns. 3. The rent of a plot rises from 54 to \
58 crowns. 4. Plot 17, given up by the Ostlers, goes to Mirela Dunne, who had waited longest. 5. \
The summer feast will be held on 12 July, with Cornelius Pym's brass band. Next meeting: 7 \
September."""

_CAKE = """\
Tessaly cake is the winter dessert of the Aldermoor valley. It is made from chestnut flour, \
honey, eggs and a little salt, and contains no butter at all. The batter is beaten for twenty \
minutes, which is why families traditionally took turns at the bowl. It is baked in a copper pan \
lined with bay leaves, and served warm with sour plum jam. The recipe was first written down in \
1788 by a cook named Lorenz Abelard, who worked at the inn of the Three Herons. In some villages \
a dried bean is hidden in the dough, and whoever finds it must sing. A society of bakers in \
Aldermoor still holds a contest every December, judged by children only."""

_STOVE = """\
EMBERWOLD 7 wood stove - brief instructions

Burn only dry beech or ash, split and stored for two years. To light it, open slide A fully and \
slide B halfway, lay kindling on top of the logs, and light it from above. After ten minutes \
close slide A to the second notch. Never lay on more than 1.8 kg at a time. Empty the ash pan \
when it is two thirds full. The glass is cleaned with damp newspaper and a little ash. If smoke \
comes into the room, the flue is cold: burn a sheet of paper in it first. The sweep must come \
every spring. Spare part numbers: door seal ES-14, grate ES-20, glass ES-31."""

# The first of a few questions about each document that Qwen2.5-Coder-0.5B answers rightly from the
# full context; no other method's answers were looked at.
_ASKED = (
    (_LIGHTHOUSE, "Who directed the building of the Skerrivore lighthouse?", "Ottilie Marchbanks"),
    (_FERRY, "What does a bicycle cost on the ferry to Morwen?", "2.00"),
    (
        _POOL,
        "Who is on duty when diving from the five-metre board is allowed?",
        "Ludmila Farrow",
    ),
    (_EMAIL, "Who is the driver of Ashdown Nurseries?", "Osric"),
    (
        _COMET,
        "What is the name of the space probe that flew through the comet's tail?",
        "Calliope",
    ),
    (_MINUTES, "Who gets plot 17 of Long Furrow?", "Mirela Dunne"),
    (_CAKE, "Who first wrote down the recipe of Tessaly cake?", "Lorenz Abelard"),
    (_STOVE, "What is the part number of the Emberwold 7's grate?", "ES-20"),
)


def example() -> Example:
    """Two lives, as the generator of biographies writes them, among the eight other documents."""
    config = biography.BiographyConfig(
        num_documents=2,
        document_words=biography.LONG_DOCUMENT,
        num_questions=12,
        forms=("question",),
    )
    lives = biography.generate("test", 0, config)
    asked = [(text, Question(question, (answer,))) for text, question, answer in _ASKED]
    for i, place in ((0, 0), (1, 5)):
        first = next(q for q in lives.questions if q.info["documents"] == [i])
        asked.insert(place, (lives.documents[i], first))
    texts, questions = zip(*asked, strict=True)
    numbered = tuple(
        Question(q.text, q.answers, info={"documents": [i]}) for i, q in enumerate(questions)
    )
    return Example("demo", texts, numbered)
