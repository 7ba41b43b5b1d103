"""Renders a chat template; a program of its own, run by chat_template.py, that imports no more.

A template is a program from the internet: here it has a sandbox, no files, and limits of memory and
time. It is given the same clock, hashes and random numbers on every day.

stdin: {"template", "variables", "date", "memory", "seconds", "characters"}; stdout: {"text"} or
{"error"}.
"""

import datetime
import json
import random
import resource
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which marks what a model says: passed as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def refuse(message):
    raise jinja2.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment(date):
    extensions = [Generation, jinja2.ext.loopcontrols]
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    made.filters["tojson"] = tojson
    day = datetime.datetime.fromisoformat(date)
    made.globals |= {"raise_exception": refuse, "strftime_now": day.strftime}
    return made


def render(order):
    random.seed(0)
    made = environment(order["date"])
    parts, size = [], 0
    for part in made.from_string(order["template"]).generate(**order["variables"]):
        parts.append(part)
        size += len(part)
        if size > order["characters"]:
            refuse(f"it writes more than {order['characters']:,} characters")
    return "".join(parts)


def main():
    order = json.load(sys.stdin)
    limits = {"RLIMIT_AS": order["memory"], "RLIMIT_CPU": order["seconds"], "RLIMIT_FSIZE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    try:
        answer = {"text": render(order)}
    except MemoryError:
        answer = {"error": f"it takes more than {order['memory'] // 2**20} MB of memory"}
    except Exception as error:  # whatever a program from the internet raises
        answer = {"error": str(error)[:1000] or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
