"""Retired words and phrases: private dialect of earlier versions, with the standard term to write instead.

Checked over everything that is written here: code, comments, messages, pages, templates, workflows and documents.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Generated or recorded: npm's and uv's locks, pictures, tables as version 0.1.0 wrote them, and this list itself.
NOT_OURS = re.compile(
    r"package-lock\.json|requirements[\w-]*\.txt|\.(png|svg)$|tables-0\.1\.0\.json|test_words\.py|LICENSE"
)

# As words of a sentence or parts of a name (`_` and digits separate): pattern -> what to write instead.
RETIRED = {
    r"somebody|someone else|nobody|whoever|anybody|everybody|no one": "another caller, no caller, all callers",
    r"himself|herself|he|she|his": "they, or the role: the caller, the operator, the client",
    r"told|tells?|telling": "log, report, say, show, return, distinguish",
    r"said|asked": "answered, returned, sent, stated; requested",
    r"journal": "call log, telemetry",
    r"(?<!capital )letters?(?!-spacing| and| or|,)": "summary email",
    r"removals?": "deletion",
    r"(clear|clears|cleared|clearing|erase|erased) away": "delete",
    r"pass(ed|es|ing)? over|cooling": "circuit open, cooldown, skipped",
    r"posts|posted|(a|the|one|another|same|every|each|any) post(?![-\w(])": "request (HTTP), message (chat)",
    r"put(s|ting)? up with": "tolerate, keep retrying for",
    r"stands? before|too much to do|the log has it as|none of CLIENT_KEYS": "gateway, overloaded, incident ID, invalid",
    r"anew|thereof|whereof|wherefore|therewith|thereby|thither|hither|whence": "again, of it, from which",
    r"in the clear": "unencrypted",
    r"house|heart|mourns?|dares?": "module, package, layer",
    r"Happened|Addressed|Asking": "CallRecord, MailConfig, ModelCall",
}
RETIRED_PATTERN = re.compile("|".join(rf"(?<![A-Za-z])(?:{pattern})(?![a-z])" for pattern in RETIRED), re.IGNORECASE)
ALLOWED = re.compile(r'"(told|removal|removal_erases|Tell me [^"]*)"')  # stored columns; messages to a model
# Participles that stood for things: fine as verbs in a sentence, not as names of variables, functions or fields.
RETIRED_NAMES = {"said", "asked", "found", "known", "taken", "kept", "used", "told", "gone", "given", "held_back"}
RETIRED_PREFIXES = re.compile(r"_?(most|longest|shortest)_", re.IGNORECASE)


def written_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if not NOT_OURS.search(name) and (ROOT / name).exists()]


def retired_words(text: str) -> list[str]:
    return [
        f"{number}: {match.group()!r} in {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for match in RETIRED_PATTERN.finditer(ALLOWED.sub("", line).replace("_", " "))
    ]


def retired_names(source: str) -> list[str]:
    retired = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case _:
                continue
        if name in RETIRED_NAMES or RETIRED_PREFIXES.match(name):
            retired.append(f"{node.lineno}: the name {name}")
    return retired


@pytest.mark.parametrize("path", written_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_word(path: Path) -> None:
    text = path.read_text()
    assert retired_words(text) == []
    if path.suffix == ".py":
        assert retired_names(text) == []


def test_retired_words_are_recognised_in_sentences_and_names() -> None:
    assert len(retired_words("the journal is told\nHe tells nobody")) == 5
    assert len(retired_words("def test_a_post_is_passed_over(): ...")) == 2
    assert retired_words("client.post(url); these letters, words, there") == []
    assert retired_names("MOST_DAYS = 3\nfor found in []: ...") == ["1: the name MOST_DAYS", "2: the name found"]
