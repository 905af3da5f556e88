"""The caller of a request, under the name that sessions, the ledger and reports use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """An anonymous caller (`name` is None), or one with a named client key (`key:{name}`) or usage key
    (`usage-key:{name}`)."""

    name: str | None = None

    @classmethod
    def of_key(cls, name: str) -> "Principal":
        return cls(f"key:{name}")


ANONYMOUS = Principal()
