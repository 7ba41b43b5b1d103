"""Plain English prose without numbers or names that matter: the hay around the needles.

Sentences are drawn from patterns; there are far more than any context uses (over 100,000).
"""

import string

_SLOTS = {
    "who": """the baker, the ferryman, the new teacher, an old sailor, the postmaster, a young
clerk, the gardener, the night watchman, the innkeeper, a travelling merchant, the miller, the
schoolmaster's daughter, the keeper of the lighthouse, a retired captain, the bell ringer, the
mayor, the youngest of the brothers, a stranger from the coast, the widow next door, the
carpenter's apprentice, the woman at the counter, a quiet student, the shepherd, the town's only
lawyer, the head of the orchestra""",
    "group": """the fishermen, the children of the village, most of the guests, the two sisters,
the neighbours, the travellers, a few of the older farmers, the members of the council, the
workers at the mill, all the passengers, the students, several of the merchants, the musicians""",
    "saw": """noticed, described, remembered, mentioned, pointed out, looked for, admired, asked
about, painted, wrote about, dreamed of, complained about""",
    "made": """repaired, carried away, measured, cleaned, sold, borrowed, replaced, hid, examined,
finished, bought, lost""",
    "what": """the broken clock, a basket of pears, the narrow bridge, the letters from abroad,
an unfinished map, the smell of fresh bread, the empty warehouse, a pair of worn boots, the
painted door, the garden wall, the sound of the bells, a box of old photographs, the long queue
at the station, the wooden staircase, a jar of dark honey, the torn curtain, the library's oldest
book, the harvest, a small brass key, the colour of the water, the damaged roof, the missing
lantern, a bundle of dry reeds, the view from the hill""",
    "where": """behind the church, near the harbour, at the edge of the forest, in the back room,
by the canal, on the market square, outside the station, along the river path, under the old
bridge, in the upper town, beside the orchard, at the end of the lane, across the valley, in the
reading room, not far from the quarry, on the far shore""",
    "when": """on a rainy afternoon, before sunrise, late in the autumn, during the festival, after
supper, at the end of the week, one winter evening, in the early spring, shortly after the storm,
on the way home, just before the shops closed, when the fog had lifted, in the middle of the
night, as soon as the ice had melted, on market day""",
    "thing": """the road, the weather, the sea, the town hall, the mill, the whole valley, the old
inn, the harvest, the river, the garden, the market, the last train, the concert, the ferry""",
    "how": """quieter than usual, better than anyone had expected, much the same as the year before,
slower than it used to be, almost forgotten, full of surprises, a matter of long debate, the talk
of the neighbourhood, difficult to describe, well worth the wait, a little disappointing, more
crowded than ever""",
    "belief": """patience is worth more than speed, a good neighbour is better than a strong fence,
small repairs prevent large ones, every house keeps a secret, the wind would turn before evening,
nobody reads the notices on the wall, bread tastes best when shared, old tools should be kept,
the shortest way is seldom the most beautiful, a garden teaches more than a book, silence can be
a kind of answer, the best stories are told in kitchens""",
    "purpose": """to wait for news, to escape the noise, to help with the work, to settle an old
argument, to learn the trade, to look at the boats, to buy thread and candles, to listen to the
music, to prepare for the journey, to say goodbye, to count the empty barrels, to shelter from
the rain""",
}

_PATTERNS = (
    "{who} {saw} {what} {where} {when}.",
    "{when}, {who} {made} {what} {where}.",
    "{group} gathered {where} {purpose}, and {who} {saw} {what}.",
    "{who} believed that {belief}, although {group} did not agree.",
    "{thing} was {how}, so {group} stayed {where} {purpose}.",
    "{where}, {group} {made} {what} {when}.",
    "it was said that {who} once {made} {what} {purpose}.",
    "{thing} was {how} {when}, and hardly anyone {saw} {what}.",
    "{who} came {purpose}, but soon {saw} {what} {where} instead.",
    "nobody could explain why {who} {made} {what} {when}.",
    "{group} liked to say that {belief}.",
    "{when}, {thing} seemed {how}.",
    "{who} and {group} met {where} {when} {purpose}.",
    "for {who}, {thing} had always been {how}.",
    "{group} {saw} {what}, while {who} sat {where} and said nothing.",
    "{who} wrote in a letter that {thing} was {how}.",
    "although {thing} was {how}, {who} {made} {what} {when}.",
    "{who} used to stand {where} {when}, certain that {belief}.",
)

_CHOICES = {k: [" ".join(item.split()) for item in v.split(",")] for k, v in _SLOTS.items()}
_FIELDS = {p: [f for _, f, _, _ in string.Formatter().parse(p) if f] for p in _PATTERNS}


def sentence(rng) -> str:
    """Returns one sentence drawn with `rng`, a `random.Random`."""
    pattern = rng.choice(_PATTERNS)
    text = pattern.format(**{slot: rng.choice(_CHOICES[slot]) for slot in _FIELDS[pattern]})
    return text[0].upper() + text[1:]


def paragraph(rng, num_words: int, used: set[str]) -> list[str]:
    """Returns sentences of about `num_words` words, at least one, none of them in `used`.

    Adds them to `used`, so that a whole context does not say anything twice.
    """
    sentences, left = [], num_words
    while True:
        new = sentence(rng)
        if new in used:
            continue
        length = len(new.split())
        if sentences and left < length / 2:
            return sentences
        used.add(new)
        sentences.append(new)
        left -= length
