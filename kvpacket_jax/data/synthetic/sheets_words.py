"""The words of the sheets: their kinds, layouts, names of lines, and questions."""

# ruff: noqa: RUF001  sheets have en dashes

import itertools
from collections.abc import Callable
from typing import NamedTuple

from kvpacket_jax.data.synthetic import biography_words as people


class Sheet(NamedTuple):
    """One kind of sheet. Texts hold {f}, the firm, and {n}, the name of a line."""

    names: str  # the pool of POOLS that lines are named from
    value: Callable  # (random generator, the line's name, surnames of people) -> a line's value
    headings: tuple[str, ...]
    notes: tuple[str, ...]  # above or below the lines
    asked: tuple[str, ...]
    sorted: bool = False  # values rise from line to line, as times do


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(","))


_THINGS = _listed("""oil change, wheel alignment, haircut, beard trim, passport photo, key copy,
shoe resoling, zip repair, window cleaning, carpet cleaning, piano tuning, knife sharpening, tyre
change, battery test, watch strap, picture frame, gift wrapping, house call, garden visit, hedge
cutting, lawn mowing, snow clearing, dog walk, cat sitting, day ticket, evening ticket, family
ticket, ten visits, yearly pass, locker, towel hire, skate hire, boat hire, canoe hire, tent
pitch, caravan pitch, extra bed, cot, breakfast, packed lunch, three-course dinner, soup of the
day, pot of tea, large coffee, fruit cake, cheese board, room for a night, parking space, charging
a car, laundry load, ironed shirt, dry-cleaned suit, wool scarf, garden gnome, bag of compost,
rose bush, apple tree, bird table, candle, soap bar, jar of honey, dozen eggs, sack of potatoes,
bundle of firewood, printed page, colour copy, bound booklet, poster, business cards, stamp, name
plate, door sign""")

_ROLES = _listed("""managing director, head of sales, head of purchasing, bookkeeper, cashier,
night porter, caretaker, workshop foreman, head chef, head gardener, librarian, press officer,
safety officer, first-aider, apprentice supervisor, driver, receptionist, warehouse keeper,
surveyor, interpreter, archivist, data protection officer, works council chair, fire warden, tour
guide, nurse, lifeguard, treasurer, secretary, deputy director, quality inspector, event planner,
web editor, training officer, dispatcher, head of laboratory, conservator, stage manager, ticket
clerk, payroll clerk""")

_DAYS = _listed("""Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, New Year's Eve,
Christmas Eve, Easter Monday, public holidays, market days, the first Sunday of
the month, the day of the fair, winter weekdays, summer weekdays, winter weekends, summer
weekends, stocktaking day, Good Friday, Whit Monday, the last Friday of the month""")

# name -> unit
_PROPERTIES = {
    "weight": "kg", "height": "cm", "width": "cm", "depth": "cm", "tank volume": "litres",
    "power input": "watts", "noise level": "decibels", "cable length": "metres",
    "warranty": "months", "range": "km", "top speed": "km/h", "operating pressure": "bar",
    "water use": "litres an hour", "cutting width": "cm", "working height": "metres",
    "charging time": "minutes", "battery life": "hours", "load limit": "kg",
    "motor speed": "rpm", "bag volume": "litres", "delivery time": "days",
    "shelf life": "weeks", "service interval": "hours", "blade diameter": "mm",
    "hose length": "metres", "drum volume": "litres", "screen size": "inches",
    "wall thickness": "mm", "flow rate": "litres a minute", "lifting height": "metres",
    "heating time": "seconds", "turning circle": "metres", "grip width": "mm",
}  # fmt: skip

_TASKS = _listed("""repair the gate, order the gravel, paint the fence, book the hall, print the
leaflets, write to the council, clean the gutters, buy new lamps, audit the accounts, find a
sponsor, mend the projector, plant the bulbs, update the website, move the bookshelves, invite the
choir, hire a marquee, collect the keys, renew the insurance, count the chairs, draft the
statutes, sort the archive, bake for the fair, borrow a trailer, compare the offers, train the
stewards, replace the lock, design the poster, rent the van, test the alarm, measure the
cellar""")

# pool -> names of lines, divided among the splits.
POOLS = {
    "things": _THINGS,
    "roles": _ROLES,
    "days": _DAYS,
    "properties": tuple(_PROPERTIES),
    "tasks": _TASKS,
    "towns": tuple(people.VALUES["birth_place"]()),
}

LAYOUTS = (
    "{n}: {v}",
    "{n} – {v}",
    "- {n}: {v}",
    "• {n} … {v}",
    "{n} ........ {v}",
    "| {n} | {v} |",
    "{n}\t{v}",
    "* {n} ({v})",
    "{n} = {v};",
)


def _price(rng, name: str, surnames) -> str:
    whole = rng.choice((rng.randint(1, 9), rng.randint(10, 99), rng.randint(100, 480)))
    return f"{whole}.{rng.choice(('00', '20', '50', '80', '90', '95', '40'))}"


def _time(rng, name: str, surnames) -> str:
    return f"{rng.randint(5, 23):02}:{rng.randint(0, 59):02}"


def _hours(rng, name: str, surnames) -> str:
    start, length = rng.randint(6, 12), rng.randint(3, 10)
    minutes = [rng.choice(("00", "15", "30", "45")) for _ in range(2)]
    return f"{start}:{minutes[0]} to {start + length}:{minutes[1]}"


def _person(rng, name: str, surnames) -> str:
    first = rng.choice(people.FEMALE_NAMES + people.MALE_NAMES)
    return f"{first} {rng.choice(surnames)}"


def _quantity(rng, name: str, surnames) -> str:
    tenths = f"{rng.randint(1, 9)}.{rng.randint(1, 9)}"
    number = rng.choice((rng.randint(2, 40), rng.randint(41, 990), tenths))
    return f"{number} {_PROPERTIES[name]}"


def _assigned(rng, name: str, surnames) -> str:
    return f"{_person(rng, name, surnames)}, by {rng.randint(1, 28)} {rng.choice(_MONTHS)}"


_MONTHS = "January February March April May June July September October November".split()

SHEETS = {
    "prices": Sheet(
        "things",
        _price,
        ("{f}: price list", "What things cost at {f}", "{f} – our prices this year"),
        (
            "All prices include tax.",
            "Cash or card. No cheques, please.",
            "Members pay ten per cent less.",
            "Ask at the counter for larger orders.",
        ),
        (
            'What does "{n}" cost at {f}?',
            'What price does {f} list for "{n}"?',
            'How much does {f} charge for "{n}"?',
        ),
    ),
    "staff": Sheet(
        "roles",
        _person,
        ("{f}: who is who", "The people of {f}", "Staff of {f}"),
        (
            "Please ring before you come.",
            "Changes go to the front desk.",
            "Photographs hang in the corridor.",
        ),
        (
            "Who is the {n} of {f}?",
            "What is the name of the {n} at {f}?",
            "Which person works as {n} for {f}?",
        ),
    ),
    "hours": Sheet(
        "days",
        _hours,
        ("{f}: opening hours", "When we are there – {f}", "Hours of {f}"),
        (
            "Last admission half an hour before closing.",
            "We ask for your patience at noon.",
            "Dogs may come in on a lead.",
        ),
        (
            "When is {f} open on {n}?",
            "What are the hours of {f} on {n}?",
            "What are the opening hours of {f} on {n}?",
        ),
    ),
    "timetable": Sheet(
        "towns",
        _time,
        ("{f}: departures", "Timetable of the {f}", "{f} – stops and times"),
        (
            "Not on public holidays.",
            "Bicycles only if there is room.",
            "Tickets from the driver.",
        ),
        (
            "When does the {f} leave {n}?",
            "At what time does the {f} stop in {n}?",
            "At what time does the {f} depart from {n}?",
        ),
        sorted=True,
    ),
    "data": Sheet(
        "properties",
        _quantity,
        ("{f}: technical data", "Data sheet – {f}", "{f} at a glance"),
        (
            "Subject to change without notice.",
            "Measured at room temperature.",
            "Keep this sheet with the machine.",
        ),
        (
            "What {n} does the data sheet of the {f} give?",
            "What is the {n} of the {f}?",
            "Which {n} is stated for the {f}?",
        ),
    ),
    "minutes": Sheet(
        "tasks",
        _assigned,
        ("{f}: decisions of the meeting", "Minutes of the {f}, who does what", "To do – {f}"),
        (
            "The chair opened the meeting at half past seven.",
            "Apologies were received from three members.",
            "The next meeting is in a month.",
        ),
        (
            "Who at the {f} is to {n}, and by when?",
            "Whom did the {f} ask to {n}, and by when?",
        ),
    ),
}

_AREAS = ("Garage", "Leisure Centre", "Guest House", "Nursery", "Copy Shop", "Café", "Store")

# kind -> what its firms are called; {n} is a surname.
FIRMS = {
    "prices": tuple(f"{{n}}'s {area}" for area in _AREAS),
    "staff": ("{n} & Sons", "the {n} Museum", "{n} Logistics", "the {n} Clinic"),
    "hours": ("{n}'s Bakery", "the {n} Library", "the {n} Pool", "{n}'s Bookshop"),
    "timetable": ("{n} Line", "{n} Express", "{n} Ferry", "{n} Night Bus"),
    "data": tuple(
        f"{{n}} {machine} {number}"
        for machine, number in itertools.product(("pump", "mower", "mixer", "saw"), (3, 20, 400))
    ),
    "minutes": ("{n} Street Residents", "{n} Rowing Club", "Friends of {n} Hall"),
}
