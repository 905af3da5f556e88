"""LiteLLM's embeddings. Prints what it got for the texts in the arguments, as JSON."""

import json
import sys

import litellm  # type: ignore[import-not-found]

MODEL, *TEXTS = sys.argv[1:]
answers = []
for model in (f"azure/{MODEL}", f"openai/{MODEL}"):
    for options in ({}, {"encoding_format": "float"}):
        answer = litellm.embedding(model=model, input=TEXTS, num_retries=0, **options)
        answers.append([item["embedding"] for item in answer.data])
        assert answer.usage.prompt_tokens
print(json.dumps(answers))
