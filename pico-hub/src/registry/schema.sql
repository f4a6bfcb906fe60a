-- Version 1. Times are microseconds since 1970; messages are protocol buffers of pico.v1.
CREATE TABLE apps (
    id       INTEGER PRIMARY KEY,
    owner    TEXT NOT NULL,
    name     TEXT NOT NULL,
    spec     BLOB NOT NULL,
    version  INTEGER NOT NULL,
    desired  INTEGER NOT NULL,
    state    INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    since    INTEGER NOT NULL,
    ipv4     TEXT,
    ipv6     TEXT,
    agent    INTEGER REFERENCES agents (id),
    created  INTEGER NOT NULL,
    figures  BLOB,
    UNIQUE (owner, name)
) STRICT;
CREATE INDEX apps_by_agent ON apps (agent);

CREATE TABLE agents (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    host       BLOB NOT NULL,
    joined     INTEGER NOT NULL,
    last_heard INTEGER NOT NULL,
    token      INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    id        INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    role      INTEGER NOT NULL,
    owner     TEXT NOT NULL,
    agent     INTEGER,
    note      TEXT NOT NULL,
    created   INTEGER NOT NULL,
    expires   INTEGER,
    revoked   INTEGER,
    last_used INTEGER
) STRICT;
CREATE INDEX tokens_by_age ON tokens (created, id);

CREATE TABLE operations (
    id       INTEGER PRIMARY KEY,
    app      INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    verb     TEXT NOT NULL,
    cold     INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    finished INTEGER,
    error    BLOB
) STRICT;
CREATE INDEX operations_open ON operations (app, created) WHERE finished IS NULL;
CREATE INDEX operations_by_end ON operations (finished) WHERE finished IS NOT NULL;

CREATE TABLE requests (
    owner     TEXT NOT NULL,
    id        TEXT NOT NULL,
    hash      BLOB NOT NULL,
    operation INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_age ON requests (at);

CREATE TABLE events (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    app       INTEGER,
    owner     TEXT NOT NULL,
    name      TEXT NOT NULL,
    agent     INTEGER,
    state     INTEGER,
    reason    TEXT NOT NULL,
    request   TEXT NOT NULL,
    operation INTEGER
) STRICT;

CREATE TABLE zone (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    serial INTEGER NOT NULL
) STRICT;
INSERT INTO zone VALUES (1, 1);
