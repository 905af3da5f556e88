"""How good and how repeatable the embedded model's answers are, by sampling and system prompt.

`python -m benchmarks.embedded_model`. Starts the model as `make run` does, and asks it the README's messages (one
conversation) and 20 everyday questions (a conversation each), which count as right if the expected word is in the
answer; of 12 open messages it counts the answers that repeat six words in a row three times. All answers are at most
200 tokens. The last row sends no sampling and no system prompt: it is what the model's server does by itself.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from local import model
from local.parts import free_port

README = [
    ("What is the capital of France?", r"capital of france is paris"),
    ("And of Italy?", r"capital of italy is rome"),
    ("Thank you!", r"welcome|glad i could"),
]
QUESTIONS = [
    ("What is the capital of Japan?", r"tokyo"),
    ("What colour is the sky on a clear day?", r"blue"),
    ("How many days are in a week?", r"7|seven"),
    ("What is 2 + 2?", r"4|four"),
    ("Who wrote Romeo and Juliet?", r"shakespeare"),
    ("Which is the largest ocean?", r"pacific"),
    ("What do bees make?", r"honey"),
    ("Which planet do we live on?", r"earth"),
    ("How many legs does a spider have?", r"8|eight"),
    ("What is the opposite of hot?", r"cold"),
    ("Which language do people speak in Brazil?", r"portuguese"),
    ("What is the chemical formula of water?", r"h2o|h₂o"),
    ("Which animal barks?", r"dogs?"),
    ("On which continent is Egypt?", r"africa"),
    ("Who was the first president of the United States?", r"washington"),
    ("At how many degrees Celsius does water boil?", r"100"),
    ("What is a baby cat called?", r"kitten"),
    ("How many minutes are in an hour?", r"60|sixty"),
    ("Which is the largest planet in the solar system?", r"jupiter"),
    ("How do you say hello in Spanish?", r"hola"),
]
OPEN = [
    "Tell me a short story about a cat.",
    "Write a poem about the sea.",
    "Explain how rain is made.",
    "Give me five tips for sleeping well.",
    "What can you do?",
    "Write a thank-you note to my teacher.",
    "How do I cook pasta?",
    "Tell me about France.",
    "Count from one to twenty.",
    "What should I do this weekend?",
    "Explain what a computer is.",
    "Write a to-do list for moving to a new flat.",
]
OF_THE_MODEL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OF_0_2_0 = "You are a helpful assistant. Answer in one or two short sentences."
ENGLISH = "You are a helpful assistant. Answer in English."


@dataclass(frozen=True)
class Configuration:
    name: str
    system: str = ""
    sampling: dict[str, float] = field(default_factory=dict)

    @property
    def seeds(self) -> bool:
        """Whether the answers depend on a seed."""
        return bool(self.sampling.get("temperature"))


def sampling(temperature: float, *, dry: float = 0, repeat: float = 1) -> dict[str, float]:
    return {"temperature": temperature, "dry_multiplier": dry, "repeat_penalty": repeat}


CONFIGURATIONS = [
    Configuration("temperature 0.8, the prompt of 0.2.0", OF_0_2_0, sampling(0.8)),
    Configuration("temperature 0.8, plain English", model.SYSTEM_PROMPT, sampling(0.8)),
    Configuration("temperature 0, the prompt of 0.2.0", OF_0_2_0, sampling(0)),
    Configuration("temperature 0, the model's own prompt", OF_THE_MODEL, sampling(0)),
    Configuration("temperature 0, English", ENGLISH, sampling(0)),
    Configuration("temperature 0, plain English", model.SYSTEM_PROMPT, sampling(0)),
    Configuration("the same, repeat penalty 1.1", model.SYSTEM_PROMPT, sampling(0, repeat=1.1)),
    Configuration("as shipped"),
]


class Asker:
    """Sends the messages of one configuration."""

    def __init__(self, url: str, configuration: Configuration, *, show: bool) -> None:
        self._url, self._configuration, self._show = url, configuration, show

    def answer(self, seed: int, *messages: str) -> str:
        """The answer to the last message, in lower case; the others are messages of the user and answers in turn."""
        roles = ("user", "assistant") * len(messages)
        conversation = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
        if self._configuration.system:
            conversation.insert(0, {"role": "system", "content": self._configuration.system})
        body: dict[str, Any] = {"messages": conversation, "seed": seed, **self._configuration.sampling}
        reply = httpx.post(self._url, json=body, timeout=60, trust_env=False).raise_for_status().json()
        text = str(reply["choices"][0]["message"]["content"])
        if self._show:
            print(f"    {messages[-1]} {text!r}")
        return text

    def right_in_readme(self, seed: int) -> int:
        messages: list[str] = []
        right = 0
        for message, pattern in README:
            messages.append(message)
            messages.append(self.answer(seed, *messages))
            right += contains(messages[-1], pattern)
        return right

    def right_of_questions(self, seed: int) -> int:
        return sum(contains(self.answer(seed, question), pattern) for question, pattern in QUESTIONS)

    def loops(self, seed: int) -> int:
        return sum(repeats_itself(self.answer(seed, message)) for message in OPEN)


def contains(text: str, pattern: str) -> bool:
    return re.search(rf"(?<!\w)({pattern})(?!\w)", text.lower()) is not None


def repeats_itself(text: str) -> bool:
    words = text.split()
    return max(Counter(zip(*(words[start:] for start in range(6)), strict=False)).values(), default=0) >= 3


def mean(values: Sequence[int]) -> str:
    return f"{sum(values) / len(values):.3g}"


def measure(seeds: int, *, show: bool) -> None:
    port = free_port()
    server = model.serve(port)
    print(f"{'configuration':38} {'right of 20':>11} {'README right of 3':>17} {'loops of 12':>11}")
    for configuration in CONFIGURATIONS:
        asker = Asker(f"http://127.0.0.1:{port}/v1/chat/completions", configuration, show=show)
        runs = range(seeds if configuration.seeds else 1)
        right = mean([asker.right_of_questions(seed) for seed in runs])
        readme = mean([asker.right_in_readme(seed) for seed in runs])
        loops = mean([asker.loops(seed) for seed in runs])
        print(f"{configuration.name:38} {right:>11} {readme:>17} {loops:>11}", flush=True)
    del server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedded_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs at a temperature above 0, averaged (5)")
    parser.add_argument("--answers", action="store_true", help="print every answer too")
    arguments = parser.parse_args()
    measure(arguments.seeds, show=arguments.answers)
