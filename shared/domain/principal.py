"""The caller of a request, under the name that sessions, the ledger and reports use."""

from dataclasses import dataclass

_USAGE_KEY = "usage-key:"
PERSON = "user:"


@dataclass(frozen=True, slots=True)
class Principal:
    """An anonymous caller (`name` is None), one with a named client key (`key:{name}`) or usage key
    (`usage-key:{name}`), or a person (`user:{tenant}:{object id}`)."""

    name: str | None = None
    is_admin: bool = False  # a person who may see usage

    @classmethod
    def of_key(cls, name: str) -> "Principal":
        return cls(f"key:{name}")

    @classmethod
    def of_usage_key(cls, name: str) -> "Principal":
        return cls(f"{_USAGE_KEY}{name}")

    @classmethod
    def of_person(cls, tenant: str, object_id: str, *, is_admin: bool) -> "Principal":
        return cls(f"{PERSON}{tenant}:{object_id}", is_admin)

    @property
    def reads_usage(self) -> bool:
        return self.is_admin or (self.name is not None and self.name.startswith(_USAGE_KEY))


ANONYMOUS = Principal()
