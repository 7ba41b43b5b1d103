"""Whether a folder's work may go on: it may if all that the work depends on is what it was."""

import json
from collections.abc import Collection, Mapping
from typing import Any


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
    if fields := differences(stored, present, free):
        raise ValueError(
            f"{subject}; {', '.join(fields)} differ: { {f: stored.get(f) for f in fields} }, not "
            f"{ {f: present.get(f) for f in fields} }. Give the same settings, or choose another "
            "--workdir."
        )
