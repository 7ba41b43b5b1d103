"""The words of the biographies: names, the pools of values, phrasings and questions.

The stems of towns, universities and employers are all different, so that a value is
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

MALE_NAMES = _split("""Aaron Abel Adrian Alvaro Amir Anton Arthur Axel Bashir Boris Bruno Casper
Cedric Conrad Cyril Dario Desmond Diego Edgar Elias Emil Enzo Felix Fergus Gabriel Gideon Gustav
Hamid Hector Henrik Hugo Ibrahim Igor Isaac Ivan Jonas Joaquin Jules Kenji Lars Leon Lorenz Magnus
Marcel Mateo Milan Nestor Oliver Omar Oscar Pablo Pavel Quentin Rafael Ravi Rufus Samuel Silas
Stefan Tariq Theo Tobias Viktor Yusuf""")

SURNAMES = _split("""Abbott Adams Allen Archer Armstrong Arnold Atkins Austin Bailey Baker Baldwin
Banks Barber Barker Barnes Barrett Bates Baxter Becker Bennett Benson Berry Bishop Black Blake
Bolton Booth Bowen Bradley Brady Brennan Briggs Brooks Bryant Buckley Burgess Burke Burns Burton
Butler Byrne Caldwell Cameron Campbell Carlson Carr Carroll Carter Chambers Chandler Chapman Clark
Clayton Coleman Collins Connor Conway Cooper Corbett Cox Craig Crawford Cross Cunningham Curtis
Dalton Daniels Davidson Dawson Dean Dixon Donovan Douglas Doyle Drake Duncan Dunn Eaton Edwards
Elliott Ellis Emerson Erickson Evans Farrell Ferguson Fernandez Fisher Fitzgerald Fletcher Flynn
Foster Fowler Francis Franklin Fraser Freeman Fuller Gallagher Garcia Gardner Garrett Gibson
Gilbert Goodwin Gordon Graham Grant Graves Greene Griffin Hale Hamilton Hansen Harding Harper
Harrington Harris Hart Harvey Hawkins Hayes Henderson Hoffman Holland Holmes Hopkins Horton Howard
Hudson Hughes Hunter Ingram Jackson Jacobs Jarvis Jenkins Jensen Johnston Jordan Keller Kelly
Kennedy Kerr Klein Knight Lambert Larson Lawrence Lawson Leonard Lewis Lindsay Logan Lopez Lowe
Lynch Maddox Mann Marshall Martinez Mason Matthews Maxwell McCarthy McDonald McKenzie Mendoza
Meyer Mills Mitchell Morales Moreno Morgan Morris Morrison Murphy Myers Nash Nelson Newman Nichols
Nielsen Nolan Norris Norton Olsen Osborne Owens Palmer Parker Parsons Patterson Payne Pearson
Perkins Perry Peters Phillips Pierce Porter Powell Preston Price Quinn Ramsey Randall Reeves Reid
Reynolds Richards Riley Rivera Roberts Robinson Rogers Ross Rowe Russell Ryan Sanders Santos
Saunders Schmidt Schneider Schultz Shannon Sharp Shaw Shepherd Simmons Simpson Sinclair Slater
Snyder Sparks Spencer Stafford Stanley Stephens Stevens Stewart Stone Sullivan Sutton Sweeney Tate
Terry Thompson Thornton Townsend Tucker Turner Tyler Underwood Vance Vargas Vaughn Vincent Wagner
Walker Wallace Walsh Walton Warner Watkins Watson Weber Webster Wheeler Whitaker Wilkins Williams
Willis Winters Woodward Wright Yates York Young Zimmerman""")

_TOWN_STARTS = _split("""Ash Barrow Black Bram Cedar Clay Cold Crow Dun Elm Fair Fox Glen Grim Haw
Heath Hollow Iron Kings Lark Long Marsh Mill Moss Oak Otter Pine Raven Red Rook Salt Silver Stone
Swan Thistle West White Willow Winter Yar""")
_TOWN_ENDS = _split("bourne bridge bury dale ford gate ham haven holt mere mouth port stead ton")

_MONTHS = _split("""January February March April May June July August September October November
December""")

_SCHOOL_STARTS = _split("""Aldine Arkwright Bexley Calloway Cardew Denholm Duval Eastlake Everard
Fairbanks Garrick Hathersage Huxtable Kestrel Kingsley Lacombe Larousse Merriam Montrose Norwell
Oakhurst Pemberly Prescott Rainer Redgrave Ridley Sheffer Sorbin Stanmore Talbot Tremaine
Underhill Vantage Wexcombe Whitlock Wyndham""")
_SCHOOL_ENDS = ("University", "College", "Polytechnic", "Academy")

_FIRM_STARTS = _split("""Acumen Amber Apex Atlas Beacon Borealis Cobalt Comet Copper Delta Echo
Ember Falcon Granite Halcyon Helix Horizon Indigo Juniper Keystone Lumen Meridian Nimbus Nova Onyx
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

_HOBBIES = _split(
    """aikido, amateur radio, archery, astronomy, backgammon, beekeeping,
bookbinding, drumming, falconry, fishing, gardening, lacrosse, metal detecting, parkour, puppetry,
badminton, baking, ballet, beadwork, billiards, birdwatching, bonsai, bowling, boxing,
calligraphy, camping, canoeing, card tricks, caving, ceramics, cheese making, chess, choral
singing, climbing, crochet, croquet, crossword puzzles, curling, cycling, darts, diving, dominoes,
embroidery, fencing, flute playing, folk dancing, geocaching, golf, gymnastics, hang gliding,
hiking, hockey, horse riding, ice skating, jogging, judo, juggling, karate, kayaking, kite flying,
knitting, lace making, landscape painting, macrame, magic tricks, marathon running, model trains,
mountain biking, mushroom hunting, orienteering, origami, papermaking, paragliding, piano playing,
poetry, quilting, rock collecting, roller skating, rowing, rugby, sailing, salsa dancing,
scrapbooking, sewing, skiing, sketching, snowboarding, soap making, squash, stamp collecting,
stargazing, swimming, table tennis, tai chi, tango, trampolining, trivia quizzes, violin playing,
volleyball, water polo, whittling, windsurfing, woodworking, wrestling, yoga""",
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
    "hobby": lambda: _HOBBIES,
}

# {s} the person (name or pronoun), {owner} the same as a possessive, {v} the value, {a} the
# value with its article.
PHRASINGS = {
    "birth_place": (
        "{s} was born in {v}.",
        "{s} was born and raised in {v}.",
        "{owner} birthplace is the town of {v}.",
    ),
    "birth_date": (
        "{s} was born on {v}.",
        "{owner} date of birth is {v}.",
        "{s} celebrates {his} birthday, {v}, with old friends.",
    ),
    "occupation": (
        "{s} works as {a}.",
        "{s} is {a} by profession.",
        "{s} earns {his} living as {a}.",
    ),
    "university": (
        "{s} studied at {v}.",
        "{s} graduated from {v}.",
        "{owner} alma mater is {v}.",
    ),
    "employer": (
        "{s} is employed by {v}.",
        "{s} works for {v}.",
        "{owner} employer is {v}.",
    ),
    "hobby": (
        "{owner} hobby is {v}.",
        "{owner} favourite hobby is {v}.",
        "In {his} free time {s} enjoys {v}.",
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

# A person by one of the facts, where a question has two hops.
DESCRIBED = {
    "birth_place": "the person born in {v}",
    "birth_date": "the person born on {v}",
    "occupation": "the person who works as {a}",
    "university": "the person who studied at {v}",
    "employer": "the person employed by {v}",
    "hobby": "the person who enjoys {v}",
}
