-- Who is kept out of the broker, whatever credentials they have. The broker gives a target its meaning.

CREATE TABLE bans (
    target     TEXT   NOT NULL PRIMARY KEY,
    reason     TEXT   NOT NULL,
    until_us   BIGINT,
    created_us BIGINT NOT NULL,
    created_by TEXT   NOT NULL
);
