"""Prompt templates: an example as the token ids of its parts.

The parts are tokenised apart and their ids joined, never as one string: a packet's ids must not
depend on what stands beside it. Only the template's own text and the preamble may hold control
tokens; documents and questions are plain text, whatever they contain.
"""

import dataclasses
import re
from typing import ClassVar, Protocol

from kvpacket_jax.data.examples import INSTRUCTION, Example, Question


class Tokenizer(Protocol):
    """What the templates need of `models.checkpoint.tokenizer.Tokenizer`."""

    has_chat_template: bool

    def encode(self, text: str, special: bool = False) -> list[int]: ...

    def chat_parts(self, system: str, thinking: bool = False) -> tuple[str, str]: ...


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """Token ids of an example; `questions` end with the template's closing."""

    preamble: list[int]
    documents: list[list[int]]
    questions: list[list[int]]

    def context_length(self, soft_tokens: int = 0) -> int:
        """Positions before the question, with so many soft tokens around each document."""
        return len(self.preamble) + sum(len(d) + soft_tokens for d in self.documents)


@dataclasses.dataclass(frozen=True)
class Template:
    """Wordings around an example's texts.

    `chat` puts the documents and the question into the user's message of the model's own chat
    template. `opening` stands between the instruction and the documents. `wording`, `reply` (the
    first words of the answer's turn, which the model goes on from) and `stop` go by the question's
    form; an answer ends before the first of `stop` (or the end token).

    streams: what `answer` returns only grows with the text, so that it can be shown as it comes.
    """

    streams: ClassVar[bool] = True

    chat: bool
    opening: str
    document: str
    wording: dict[str, str]
    reply: dict[str, str]
    stop: dict[str, tuple[str, ...]]

    def frame(self, tokenizer: Tokenizer, system: str) -> tuple[str, str]:
        """Returns the texts that frame documents and question, control tokens included.

        The first comes before `opening`, the second closes the query. Raises ValueError if the
        model has no chat format that is known.
        """
        if self.chat:
            return _chat_frame(tokenizer, system)
        begin = LLAMA_BEGIN if _has_token(tokenizer, LLAMA_BEGIN) else ""
        return f"{begin}{system}\n\n", ""

    def document_text(self, document: str) -> str:
        """Returns the text of one document as it is tokenised."""
        return self.document.format(text=document)

    def query_text(self, question: Question) -> str:
        """Returns the user's words about a question; ValueError for unknown forms."""
        if question.form not in self.wording:
            raise ValueError(
                f"no wording for the question form {question.form!r} ({question.text!r}); there "
                f"are {', '.join(self.wording)}"
            )
        return self.wording[question.form].format(text=question.text)

    def reply_text(self, question: Question) -> str:
        """Returns the words that the answer begins with, given to the model."""
        return self.reply[question.form].format(text=question.text)

    def budget(self, answer_tokens: int) -> int:
        """How many tokens the model may write for an answer of so many."""
        return answer_tokens

    def answer(self, question: Question, text: str) -> str:
        """Returns generated text up to the first stop of the question's form that ends something.

        Stops and blanks that a model puts before its answer end nothing.
        """
        text = self._begun(question, text)
        for stop in self.stop[question.form]:
            text = text.split(stop)[0]
        return text.strip()

    def has_ended(self, question: Question, text: str) -> bool:
        """Whether generated text has a stop that ends an answer: what follows is not part of it."""
        text = self._begun(question, text)
        return any(stop in text for stop in self.stop[question.form])

    def _begun(self, question: Question, text: str) -> str:
        """The text from the beginning of its answer on."""
        stops = self.stop[question.form]
        text = text.lstrip()
        while text.startswith(stops):
            stop = next(s for s in stops if text.startswith(s))
            text = text.removeprefix(stop).lstrip()
        return text


# What answers come after, as KV Packet's authors cut them out for HotpotQA; it may be in bold.
MARKER = re.compile(r"answer\s*:\**", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ReasoningTemplate(Template):
    """A template whose answers come after short reasoning, behind "Answer:".

    instruction: in place of the usual one, which forbids to explain; a user's own stays.
    reasoning_tokens: how many more than an answer the model may write.
    """

    streams = False

    instruction: str
    reasoning_tokens: int

    def frame(self, tokenizer: Tokenizer, system: str) -> tuple[str, str]:
        return super().frame(tokenizer, self.instruction if system == INSTRUCTION else system)

    def budget(self, answer_tokens: int) -> int:
        return answer_tokens + self.reasoning_tokens

    def answer(self, question: Question, text: str) -> str:
        """Returns what follows "Answer:", up to a stop; "" where the reasoning has not ended.

        Of several before the stop the last counts, as published.
        """
        if (said := _after_reasoning(text)) is None:
            return ""
        return MARKER.split(super().answer(question, said))[-1].strip(" *")

    def has_ended(self, question: Question, text: str) -> bool:
        said = _after_reasoning(text)
        return said is not None and super().has_ended(question, said)


def _after_reasoning(text: str) -> str | None:
    marked = MARKER.split(text, maxsplit=1)
    return marked[1] if len(marked) == 2 else None


REASONED = (
    "Answer the question from the documents. First reason in one or two short sentences. Then "
    'write "Answer:" and the shortest exact phrase.'
)

# `chat` is the template of whatever model is loaded, Llama-3.1's and Qwen's alike, thinking off.
TEMPLATES = {
    "completion": Template(
        chat=False,
        opening="",
        document="{text}\n\n",
        wording={"question": "Question: {text}\nAnswer:", "completion": "{text}"},
        reply={"question": "", "completion": ""},
        stop={"question": ("\n",), "completion": ("\n", ".")},
    ),
    "chat": Template(
        chat=True,
        opening="Documents:\n\n",
        document="{text}\n\n",
        wording={
            "question": "Question: {text}",
            "completion": "Complete the sentence: {text}",
        },
        # Chosen on validation by full_recompute alone: F1 .70 on five biographies; .64 and .66
        # with worked examples before the documents instead.
        reply={"question": "Answer:", "completion": "{text}"},
        stop={"question": ("\n",), "completion": ("\n",)},
    ),
    "chat_reasoning": ReasoningTemplate(
        chat=True,
        opening="Documents:\n\n",
        document="{text}\n\n",
        wording={
            "question": "Question: {text}",
            "completion": "Complete the sentence, with the missing words alone as answer: {text}",
        },
        reply={"question": "Reasoning:", "completion": "Reasoning:"},
        stop={"question": ("\n",), "completion": ("\n",)},
        instruction=REASONED,
        reasoning_tokens=96,
    ),
    "completion_reasoning": ReasoningTemplate(
        chat=False,
        opening="",
        document="{text}\n\n",
        wording={
            "question": "Question: {text}\nReasoning:",
            "completion": "Complete the sentence: {text}\nReasoning:",
        },
        reply={"question": "", "completion": ""},
        stop={"question": ("\n",), "completion": ("\n",)},
        instruction=REASONED,
        reasoning_tokens=96,
    ),
}

LLAMA_BEGIN = "<|begin_of_text|>"

# For tokenizers that come without their template: the control token that gives the format away
# -> text before the user's message, and after it.
CHAT_FORMATS = {
    "<|start_header_id|>": (  # Llama 3
        (
            f"{LLAMA_BEGIN}<|start_header_id|>system<|end_header_id|>\n\n{{system}}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n"
        ),
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "<|im_start|>": (  # ChatML: Qwen, SmolLM
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
}
NO_THINKING = "<think>\n\n</think>\n\n"  # Qwen3 thinks unless it is told that it has


def encode_example(tokenizer: Tokenizer, template: Template, example: Example) -> EncodedExample:
    """Returns the ids of the preamble, of each document and of each question, to be joined.

    Raises ValueError for a question form that the template lacks, or no known chat format.
    """
    before, closing = template.frame(tokenizer, example.preamble)
    preamble = tokenizer.encode(before, special=True)
    closing_ids = tokenizer.encode(closing, special=True) if closing else []
    if template.opening:
        preamble = preamble + tokenizer.encode(template.opening)
    return EncodedExample(
        preamble=preamble,
        documents=[tokenizer.encode(template.document_text(d)) for d in example.documents],
        questions=[
            tokenizer.encode(template.query_text(q))
            + closing_ids
            + tokenizer.encode(template.reply_text(q))
            for q in example.questions
        ],
    )


def _has_token(tokenizer: Tokenizer, token: str) -> bool:
    return len(tokenizer.encode(token, special=True)) == 1


def _chat_frame(tokenizer: Tokenizer, system: str) -> tuple[str, str]:
    if tokenizer.has_chat_template:
        return tokenizer.chat_parts(system)
    for token, (before, after) in CHAT_FORMATS.items():
        if _has_token(tokenizer, token):
            thinks = token == "<|im_start|>" and _has_token(tokenizer, "<think>")
            return before.format(system=system), after + NO_THINKING * thinks
    raise ValueError(
        "the tokenizer has no chat template and none of the control tokens "
        f"{', '.join(CHAT_FORMATS)}: use the instruct version of the model, or template "
        "'completion'"
    )
