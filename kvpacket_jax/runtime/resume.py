"""Whether a folder's work may go on: it may if all that the work depends on is what it was."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

DIGEST = re.compile("[0-9a-f]{32,}")
PATHS = ("corpus", "folder", "ids", "path")  # names of settings that say where files of data lie
LISTED = 8  # fields
LONGEST = 60  # characters of a value


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file: tuples are lists there."""
    return json.loads(json.dumps(value))


def differences(
    stored: Mapping[str, Any], present: Mapping[str, Any], free: Collection[str] = ()
) -> list[str]:
    """The fields in which two identities differ, in alphabetical order.

    Args:
      free: fields that may differ.
    """
    stored, present = as_json(dict(stored)), as_json(dict(present))
    return sorted(
        field
        for field in stored.keys() | present.keys()
        if stored.get(field) != present.get(field) and field not in free
    )


def in_words(
    stored: Mapping[str, Any], present: Mapping[str, Any], free: Collection[str] = ()
) -> str:
    """What differs, field by field: "dataset.num_documents 5, not 10; different model (…)".

    Fields of mappings count by themselves; of digests only the beginnings are shown, and of many
    fields the first LISTED.
    """
    fields = differences(stored, present, free)
    old, new = ({k: v for f in fields for k, v in _leaves(f, w.get(f))} for w in (stored, present))
    changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    texts = [_pair(name, old.get(name), new.get(name)) for name in changed[:LISTED]]
    more = [f"and {len(changed) - LISTED} more"] * (len(changed) > LISTED)
    return "; ".join(texts + more)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)
    else:
        yield name, as_json(value)


def _pair(name: str, old: Any, new: Any) -> str:
    if any(isinstance(value, str) and DIGEST.fullmatch(value) for value in (old, new)):
        return f"different {name} ({str(old)[:8]}, not {str(new)[:8]})"
    return f"{name} {_shown(old)}, not {_shown(new)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def wherever(settings: Any) -> Any:
    """Settings without the paths to files of data, which may lie elsewhere by now.

    What they hold counts: whoever leaves out the paths compares a digest of the examples. Settings
    that are called "corpus", of a data set say, stay.
    """
    if not isinstance(settings, Mapping):
        return settings
    return {
        name: wherever(value)
        for name, value in settings.items()
        if name not in PATHS or isinstance(value, Mapping)
    }


def check(
    stored: Mapping[str, Any],
    present: Mapping[str, Any],
    subject: str,
    free: Collection[str] = (),
) -> None:
    """Refuses to go on with work that was begun with another identity.

    Args:
      stored: the identity of the work in the folder. present: that of the work to be done.
      subject: begins the message, as "runs/bio holds answers of another run".
      free: fields that may differ.

    Raises:
      ValueError: naming the fields that differ, with both values.
    """
    if words := in_words(stored, present, free):
        raise ValueError(
            f"{subject}: {words}. Give the same settings, or choose another --workdir."
        )
