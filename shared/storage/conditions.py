"""Conditions of queries, with named parameters in place of values.

https://learn.microsoft.com/rest/api/storageservices/querying-tables-and-entities#constructing-filter-strings
"""

import re
from collections.abc import Mapping

_PARAMETER = re.compile(r"@(\w+)")


def filter_text(condition: str, parameters: Mapping[str, str]) -> str:
    """The condition with each `@name` replaced by its parameter, as a literal. azure-data-tables does the same only for
    a name that ends at a space."""
    return _PARAMETER.sub(lambda match: _literal(parameters[match[1]]), condition)


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
