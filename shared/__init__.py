"""The app's package, by layers. Each imports only layers before it; pyproject.toml holds the contracts.

errors                  errors as values, each with a code and an HTTP status
domain/                 conversations, calls, the prompt's window, prices, daily figures: values and rules, no I/O
settings                the environment variables as typed values
turns/                  one turn from request to settled cost: reserve, open, call, settle, recover; its ports
access/                 the app's Azure identity, callers' keys, and the principal of a request
storage/                Azure Table Storage: sessions, ledger, days, deletions
model/                  the model service: endpoints, failover, wire format, errors
mail/                   sending email
telemetry/              a log line for each call, optional tracing
reports/                daily figures, and the email about them
maintenance             what the maintenance timer runs
services                the composition root: builds all of the above from the settings
web/                    HTTP: one module per group of routes, the contract, the pages
"""
