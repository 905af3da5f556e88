"""The rooms of the house. A room imports only rooms of its own group and of the groups above it; a test holds this.

Values: frozen, no I/O
    errors                  what can go wrong, as values with stable codes
    conversation            Message, Usage, Call, Turn, Session: what was said, what was called, what it cost

Pure rooms: values in, values out
    settings                the app's settings; what they are read from is handed in
    completion              an answer, whole or gathered from its chunks
    pricing                 usage and model to exact USD
    window                  which past turns go to the model, and how large the prompt can be
    rows                    sessions, turns, calls and ledger entries as plain rows
    summary                 ledger rows to a day's figures
    amounts                 how amounts, counts and days are written
    breakdown               the tables of the daily letter
    letter                  the daily summary as subject, text and HTML
    contract                the wire: request and answer models; validation comes from here
    problems                what is wrong with a request, in words
    openapi                 the published contract, made of those models
    answers                 values to the contract's answers, and those to JSON

The heart: knows the world by Protocols alone
    ports                   those Protocols
    recovery                what becomes of a call whose process is gone
    lease                   a session while one of its turns runs
    reservation             taking a session for one turn
    turns                   one turn, from the post to the settled cost

Adapters: each the only room that knows its part of the world
    identity                azure-identity: who the app is, and what is said where it is refused
    tables                  azure-data-tables: plain rows in and out
    sessions                the sessions table
    ledger                  the usage table
    days                    the daily table
    endpoint                openai: one endpoint of the model service, its answers as chunks, its errors
    model                   several endpoints: what was certainly not billed, again or elsewhere
    journal                 how each call went: a line of the log
    tracing                 OpenTelemetry: how each call went, as spans and metrics
    keys                    callers' keys: who is asking, and may they
    message                 a mail, as a value and in the form that mail programs know
    communication_services  mail by Azure Communication Services
    mail                    how mail leaves

Upkeep: what is done beside the turns
    removals                clearing and erasing conversations
    reports                 a day's figures: recovered, added up, kept
    delivery                the morning's mail, once

The edge
    services                the composition root, built on first use
    web                     requests to values, values and errors to answers: what all routes share
    api                     the chat and session routes
    compatible              the OpenAI-compatible routes
    usage                   the usage routes
    static                  the web pages' files, which lie in pages/
"""
