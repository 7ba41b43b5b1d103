"""The words of the biographies: names, the pools of values, phrasings and questions.

The stems of surnames, towns, universities and employers are all different, so that a value is
rarely part of another.
"""

import itertools


def _split(text: str, separator: str | None = None) -> list[str]:
    return [" ".join(item.split()) for item in text.split(separator)]


FEMALE_NAMES = _split("""Ada Agnes Alma Amara Anita Astrid Beatriz Bianca Carmen Celia Clara Daphne
Delia Edith Elena Elsa Esther Fatima Flora Freya Gemma Greta Hana Helga Hilda Imani Ingrid Irene
Isolde Ivana Jasmin Judith Katarina Keiko Leila Lorena Lucia Mabel Marta Matilda Mina Miriam
Nadia Nina Noor Olga Paloma Petra Priya Rania Rosa Ruth Selma Signe Sonia Sybil Tamar Thea
Ursula Vera Wanda Yasmin Yoko Zelda""")

MALE_NAMES = _split("""Aaron Abel Adrian Alvaro Amir Anton Arthur Axel Bashir Boris Bruno Casper Cedric
Conrad Cyril Dario Desmond Diego Edgar Elias Emil Enzo Felix Fergus Gabriel Gideon Gustav Hamid
Hector Henrik Hugo Ibrahim Igor Isaac Ivan Jonas Joaquin Jules Kenji Lars Leon Lorenz Magnus
Marcel Mateo Milan Nestor Oliver Omar Oscar Pablo Pavel Quentin Rafael Ravi Rufus Samuel Silas
Stefan Tariq Theo Tobias Viktor Yusuf""")

SURNAME_STARTS = _split("""Ander Bell Birk Brod Carl Corb Dahl Drax Eldr Fenn Gall Gerr Hald Harg Hest
Jarv Kell Kolm Lind Lorr Mald Morv Nord Obri Orm Pell Quill Rand Roth Sand Selv Strom Tand Thorn
Ulver Vald Ving Wend Wolf Zell""")
SURNAME_ENDS = _split("""ack aby ane arsen ast elin enko er etti iak idis ina ingsson ino ison oskar
ova owitz ucci ulo""")

_TOWN_STARTS = _split("""Ash Barrow Black Bram Cedar Clay Cold Crow Dun Elm Fair Fox Glen Grim Haw Heath
Hollow Iron Kings Lark Long Marsh Mill Moss Oak Otter Pine Raven Red Rook Salt Silver Stone Swan
Thistle West White Willow Winter Yar""")
_TOWN_ENDS = _split("bourne bridge bury dale ford gate ham haven holt mere mouth port stead ton")

_MONTHS = _split("""January February March April May June July August September October November
December""")

_SCHOOL_STARTS = _split("""Aldine Arkwright Bexley Calloway Cardew Denholm Duval Eastlake Everard
Fairbanks Garrick Hathersage Huxtable Kestrel Kingsley Lacombe Larousse Merriam Montrose Norwell
Oakhurst Pemberly Prescott Rainer Redgrave Ridley Sheffer Sorbin Stanmore Talbot Tremaine
Underhill Vantage Wexcombe Whitlock Wyndham""")
_SCHOOL_ENDS = ("University", "College", "Polytechnic", "Academy")

_FIRM_STARTS = _split("""Acumen Amber Apex Atlas Beacon Borealis Cobalt Comet Copper Delta Echo Ember
Falcon Granite Halcyon Helix Horizon Indigo Juniper Keystone Lumen Meridian Nimbus Nova Onyx
Orchid Pinnacle Prism Quantum Saffron Summit Tempest Titan Vertex Zenith Zephyr""")
_FIRM_ENDS = _split("Group Holdings Industries Logistics Partners Systems Works")

_OCCUPATIONS = _split(
    """accountant, acrobat, actuary, anaesthetist, animator, anthropologist, archivist,
art dealer, astronomer, auctioneer, bailiff, barista, beekeeper, blacksmith, bookbinder, botanist,
brewer, bricklayer, bus driver, butcher, cabinet maker, cardiologist, carpenter, cartographer,
chemist, chimney sweep, choreographer, civil engineer, clockmaker, coastguard, cobbler, comedian,
conductor, court clerk, crane operator, customs officer, dance teacher, data analyst, dentist,
detective, diplomat, dog trainer, economist, electrician, entomologist, estate agent, farmer,
film editor, firefighter, fisherman, flight attendant, florist, forester, furniture designer,
game warden, gardener, genealogist, geologist, glassblower, goldsmith, graphic artist,
hairdresser, harbour pilot, historian, hotel manager, illustrator, interpreter, jeweller, jockey,
journalist, judge, landscape architect, lawyer, lexicographer, librarian, lifeguard, locksmith,
marine biologist, mathematician, mechanic, meteorologist, midwife, milliner, music critic,
neurologist, notary, novelist, nurse, optician, organist, paramedic, park ranger, pastry chef,
patent examiner, pharmacist, philosopher, photographer, physiotherapist, plasterer, playwright,
plumber, police inspector, political adviser, potter, printer, private tutor, probation officer,
psychologist, puppeteer, radio presenter, radiologist, roofer, saddler, sculptor, seismologist,
ship broker, shoemaker, social worker, software developer, sommelier, sound technician,
speech therapist, stockbroker, stonemason, structural surveyor, surgeon, tailor, tax inspector,
taxidermist, toxicologist, train driver, translator, travel writer, upholsterer, urban planner,
veterinarian, violin maker, watch repairer, weaver, web designer, zookeeper""",
    ",",
)

_PASTIMES = _split("""building carving cataloguing collecting decorating drawing filming mending painting
photographing restoring studying""")
_THINGS = _split(
    """antique maps, barometers, beetles, bicycles, bird nests, butterflies, carriages,
chess sets, coins, dolls, fossils, kites, lanterns, lighthouses, masks, moths, music boxes, owls,
radios, rowing boats, seashells, steam engines, teapots, toy trains, typewriters, windmills""",
    ",",
)


def _joined(starts, ends, between=" ") -> list[str]:
    return [between.join(pair) for pair in itertools.product(starts, ends)]


# attribute -> all its values. None is part of another of the same attribute.
VALUES = {
    "birth_place": lambda: _joined(_TOWN_STARTS, _TOWN_ENDS, ""),
    "birth_date": lambda: [
        f"{month} {day}, {year}"
        for month in _MONTHS
        for day in range(1, 29)
        for year in range(1940, 2000)
    ],
    "occupation": lambda: _OCCUPATIONS,
    "university": lambda: _joined(_SCHOOL_STARTS, _SCHOOL_ENDS),
    "employer": lambda: _joined(_FIRM_STARTS, _FIRM_ENDS),
    "hobby": lambda: _joined(_PASTIMES, _THINGS),
}

# {s} the person (name or pronoun), {owner} the same as a possessive, {v} the value, {a} the
# value with its article.
PHRASINGS = {
    "birth_place": (
        "{s} was born in {v}.",
        "{s} was born and raised in {v}.",
        "Born in {v}, {s} left the town as a young adult.",
        "{s} spent {his} childhood in {v}, where {he} was born.",
        "{owner} birthplace is the small town of {v}.",
    ),
    "birth_date": (
        "{s} was born on {v}.",
        "{s} came into the world on {v}.",
        "{owner} date of birth is {v}.",
        "{s} celebrates a birthday that goes back to {v}.",
        "According to the parish register, {s} was born on {v}.",
    ),
    "occupation": (
        "{s} works as {a}.",
        "By profession {s} is {a}.",
        "{s} has been {a} for many years.",
        "{s} earns {his} living as {a}.",
        "After a long apprenticeship {s} became {a}.",
    ),
    "university": (
        "{s} studied at {v}.",
        "{s} graduated from {v} with honours.",
        "{s} took {his} degree at {v}.",
        "{owner} alma mater is {v}.",
        "For four years {s} attended {v}.",
    ),
    "employer": (
        "{s} is employed by {v}.",
        "{s} holds a permanent post with {v}.",
        "{owner} employer is {v}.",
        "For the past few years {s} has worked for {v}.",
        "{s} recently signed a new contract with {v}.",
    ),
    "hobby": (
        "In {his} free time {s} enjoys {v}.",
        "{owner} favourite hobby is {v}.",
        "{s} spends most weekends {v}.",
        "{s} relaxes in the evenings by {v}.",
        "Friends know that {s} has a passion for {v}.",
    ),
}

FILLERS = (
    "{s} is known among friends for a quiet sense of humour.",
    "Those who meet {owner} family remember their warm hospitality.",
    "{s} rarely gives interviews and prefers to stay out of the public eye.",
    "Neighbours describe {him} as patient, curious and generous.",
    "{s} speaks three languages and keeps a diary in all of them.",
    "A serious illness in early life taught {him} to value small pleasures.",
    "{s} likes long walks and strong coffee.",
    "Most mornings {s} gets up before sunrise.",
    "{owner} letters to an older cousin were published some years ago.",
    "{s} never learned to drive and travels everywhere by rail.",
    "Every summer {s} rents the same cottage by a lake.",
    "{s} gives part of {his} income to a local charity.",
    "Colleagues admire {owner} calm manner under pressure.",
    "{s} has two children and one granddaughter.",
    "An uncle who played the cello had a lasting influence on {owner} taste.",
    "{s} once won a regional prize for an essay about rivers.",
    "{owner} house is full of books, plants and half-finished projects.",
    "{s} still meets a few old classmates once a year.",
)

# form -> attribute -> wordings. {article} is the answer's, so that it completes the sentence.
ASKED = {
    "question": {
        "birth_place": (
            "Where was {n} born?",
            "In which town was {n} born?",
            "What is the birthplace of {n}?",
        ),
        "birth_date": (
            "When was {n} born?",
            "On which date was {n} born?",
            "What is the date of birth of {n}?",
        ),
        "occupation": (
            "What is the occupation of {n}?",
            "What does {n} do for a living?",
            "What is {n}'s profession?",
        ),
        "university": (
            "Which university did {n} attend?",
            "Where did {n} study?",
            "From which university did {n} graduate?",
        ),
        "employer": (
            "Who is the employer of {n}?",
            "Which company does {n} work for?",
            "By whom is {n} employed?",
        ),
        "hobby": (
            "What is the hobby of {n}?",
            "What does {n} enjoy doing in {his} free time?",
            "Which hobby does {n} have?",
        ),
    },
    "completion": {
        "birth_place": ("The birthplace of {n} is", "{n} was born in the town of"),
        "birth_date": ("{n} was born on", "The date of birth of {n} is"),
        "occupation": ("{n} works as {article}", "By profession, {n} is {article}"),
        "university": ("{n} studied at", "{n} graduated from"),
        "employer": ("{n} is employed by", "The employer of {n} is"),
        "hobby": ("The hobby of {n} is", "In {his} free time, {n} enjoys"),
    },
}
