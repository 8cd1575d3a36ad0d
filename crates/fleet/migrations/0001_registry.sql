-- The registry. One text for SQLite and PostgreSQL: ids and JSON are TEXT, times are BIGINT
-- microseconds since the Unix epoch, flags are SMALLINT 0/1.

CREATE TABLE models (
    name       TEXT     NOT NULL PRIMARY KEY,
    dbc        TEXT,
    mapping    TEXT,
    version    BIGINT   NOT NULL,
    created_us BIGINT   NOT NULL,
    updated_us BIGINT   NOT NULL
);

CREATE TABLE vehicles (
    id         TEXT     NOT NULL PRIMARY KEY,
    vin        TEXT,
    model      TEXT     REFERENCES models (name),
    attributes TEXT     NOT NULL,
    enabled    SMALLINT NOT NULL,
    version    BIGINT   NOT NULL,
    created_us BIGINT   NOT NULL,
    updated_us BIGINT   NOT NULL
);
CREATE UNIQUE INDEX vehicles_vin ON vehicles (vin);

CREATE TABLE devices (
    id         TEXT     NOT NULL PRIMARY KEY,
    vehicle_id TEXT     NOT NULL REFERENCES vehicles (id),
    kind       TEXT     NOT NULL,
    enabled    SMALLINT NOT NULL,
    version    BIGINT   NOT NULL,
    created_us BIGINT   NOT NULL,
    updated_us BIGINT   NOT NULL
);
CREATE INDEX devices_vehicle ON devices (vehicle_id, id);

-- Certificates outlive their device: a revoked one must stay known as revoked, so device_id is a
-- name and not a reference.
CREATE TABLE certificates (
    id            TEXT   NOT NULL PRIMARY KEY,
    serial        TEXT   NOT NULL,
    device_id     TEXT   NOT NULL,
    fingerprint   TEXT   NOT NULL,
    not_before_us BIGINT NOT NULL,
    not_after_us  BIGINT NOT NULL,
    revoked_us    BIGINT,
    pem           TEXT   NOT NULL
);
CREATE UNIQUE INDEX certificates_serial ON certificates (serial);
CREATE UNIQUE INDEX certificates_fingerprint ON certificates (fingerprint);
CREATE INDEX certificates_device ON certificates (device_id, id);

CREATE TABLE audit (
    id          TEXT   NOT NULL PRIMARY KEY,
    time_us     BIGINT NOT NULL,
    actor       TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    object_kind TEXT   NOT NULL,
    object_id   TEXT   NOT NULL,
    outcome     TEXT   NOT NULL,
    details     TEXT   NOT NULL
);
CREATE INDEX audit_object ON audit (object_kind, object_id, id);
