"""The caller of a request, under the name that sessions, the ledger and reports use."""

from dataclasses import dataclass

_USAGE_KEY = "usage-key:"


@dataclass(frozen=True, slots=True)
class Principal:
    """An anonymous caller (`name` is None), or one with a named client key (`key:{name}`) or usage key
    (`usage-key:{name}`)."""

    name: str | None = None

    @classmethod
    def of_key(cls, name: str) -> "Principal":
        return cls(f"key:{name}")

    @classmethod
    def of_usage_key(cls, name: str) -> "Principal":
        return cls(f"{_USAGE_KEY}{name}")

    @property
    def reads_usage(self) -> bool:
        return self.name is not None and self.name.startswith(_USAGE_KEY)


ANONYMOUS = Principal()
