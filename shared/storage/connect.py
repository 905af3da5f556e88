"""The client of Table Storage or of Azure Cosmos DB for Table that the settings choose."""

from shared.access.identity import Identity, ServiceAccess
from shared.domain.clock import Clock
from shared.settings import TableSettings
from shared.storage.http_tables import HttpTables
from shared.storage.table_service import SCOPE, BearerToken, TableService
from shared.storage.tables import Tables


def connect(settings: TableSettings, identity: Identity, clock: Clock) -> Tables:
    if settings.connection_string:
        access = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")
    elif settings.cosmos:
        access = ServiceAccess.by_identity("Azure Cosmos DB", identity, "Cosmos DB Built-in Data Contributor")
    else:
        access = ServiceAccess.by_identity("Table storage", identity, "Storage Table Data Contributor")
    if settings.cosmos:
        from shared.storage.cosmos_tables import CosmosTables

        return CosmosTables(settings.connection_string, settings.endpoint, identity, access, clock)
    if settings.client == "sdk":
        from shared.storage.sdk_tables import SdkTables  # a tenth of a second, only if it is used

        return SdkTables(settings.connection_string, settings.endpoint, identity, access)
    if settings.connection_string:
        return HttpTables(TableService.from_connection_string(settings.connection_string, clock), access)
    return HttpTables(TableService(settings.endpoint or "", BearerToken(identity.token_provider(SCOPE)), clock), access)
