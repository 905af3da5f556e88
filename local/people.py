"""The people who sign in at the local issuer, its tenant, and the app's registration there.

Only the standard library, because parts.py is imported before anything is installed.
"""

from dataclasses import dataclass

TENANT_ID = "00000000-0000-4000-8000-0000000000aa"
CLIENT_ID = "00000000-0000-4000-8000-0000000000cc"


@dataclass(frozen=True)
class Person:
    name: str
    user: str
    object_id: str
    roles: tuple[str, ...] = ("Chat.User",)


PEOPLE = (
    Person("Ada Lovelace", "ada@example.com", "00000000-0000-4000-8000-000000000001"),
    Person("Bob Kahn", "bob@example.com", "00000000-0000-4000-8000-000000000002"),
    Person("Carol Shaw", "carol@example.com", "00000000-0000-4000-8000-000000000003", ("Chat.User", "Chat.Admin")),
)
