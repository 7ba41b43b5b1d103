"""Chat templates, rendered in a process of its own that has limits and no clock."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

PROGRAM = pathlib.Path(__file__).with_name("render_template.py")
# Llama 3's templates write today's date into the system message unless they are given one, others
# ask the clock; this is Llama's own default. A prompt's tokens must not change at midnight.
DATE = "2024-07-26"
DATE_STRING = "26 Jul 2024"

MEMORY_BYTES = 2**29
CPU_SECONDS = 5
WALL_SECONDS = 60  # of a machine that has much else to do
CHARACTERS = 2**23


def render(
    file: pathlib.Path,
    template: str,
    messages: list[dict[str, str]],
    special: dict[str, str],
    thinking: bool,
) -> str:
    """The text of `messages`, up to where the model's answer begins; the same on every day.

    `file` has the template, for messages; `special` are the texts of special tokens by the names
    that templates have for them. Raises ValueError for a template that fails, or takes too much
    time or memory.
    """
    variables = special | {
        "messages": messages,
        "add_generation_prompt": True,
        "enable_thinking": thinking,
        "date_string": DATE_STRING,
        "tools": None,
        "documents": None,
    }
    try:
        answer = _run(template, json.dumps(variables))
    except _Failed as error:  # which is not kept, for the machine may be why
        answer = {"error": str(error)}
    if "error" in answer:
        raise ValueError(
            f"{file}: the chat template cannot render a system and a user message: "
            f"{answer['error']}"
        )
    return answer["text"]


class _Failed(Exception):
    """The process ended without an answer."""


@functools.lru_cache(maxsize=64)
def _run(template: str, variables: str) -> dict[str, str]:
    order: dict[str, Any] = {
        "template": template,
        "variables": json.loads(variables),
        "date": DATE,
        "memory": MEMORY_BYTES,
        "seconds": CPU_SECONDS,
        "characters": CHARACTERS,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    with process:
        try:
            output, _ = process.communicate(json.dumps(order).encode(), WALL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise _Failed(f"it was not done after {WALL_SECONDS} s") from None
    if process.returncode:
        raise _Failed(
            f"it takes more than {CPU_SECONDS} s, or {MEMORY_BYTES // 2**20} MB of memory, or its "
            f"process was killed (status {process.returncode})"
        )
    return json.loads(output)
