-- Who changed what: a chain of entries that only grows; ends of runs that wait for their entry; the keys' fingerprints.
-- Processes of the version before write no entries; what ends under them gets one all the same, from the queue.

CREATE TABLE audit_entries (
    seq         bigint PRIMARY KEY CHECK (seq > 0),  -- from 1, without gaps
    at          timestamptz NOT NULL,
    node        text NOT NULL,                    -- the control node that wrote it, and holds its head
    actor       text NOT NULL,
    token       text,                             -- the public half of the token
    address     text,
    request_id  text,
    action      text NOT NULL,
    target      text,                             -- a run, a token's name, a key
    environment text,
    operation   text,
    parameters  json,                             -- kept letter by letter; secrets as "***"
    outcome     text NOT NULL,                    -- accepted, refused, or how a run ended
    detail      text,
    key         text NOT NULL,                    -- fingerprint of the key the mac was made with
    previous    bytea NOT NULL,                   -- the mac of the entry before; 32 zero bytes before the first
    mac         bytea NOT NULL                    -- HMAC-SHA256 of the previous mac and all columns but this one
);

CREATE INDEX audit_entries_of_a_node ON audit_entries (node, seq);
CREATE INDEX audit_entries_by_target ON audit_entries (target, seq);
CREATE INDEX audit_entries_by_environment ON audit_entries (environment, seq);
CREATE INDEX audit_entries_by_action ON audit_entries (action, seq);
CREATE INDEX audit_entries_by_actor ON audit_entries (actor, seq);

-- Against mistakes of our own. An administrator of the database can drop these: the chain is what finds that out.
CREATE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries of the audit are never changed or deleted';
END $$;

CREATE TRIGGER audit_entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit();

-- The end of the chain: whoever adds an entry holds this row.
CREATE TABLE audit_head (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq  bigint NOT NULL,
    mac  bytea NOT NULL
);

INSERT INTO audit_head (seq, mac) VALUES (0, decode(repeat('00', 32), 'hex'));

-- Ends of runs are recorded even when the audit cannot be written; here they wait for their entries.
CREATE TABLE audit_ends (
    position    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run         text NOT NULL,
    operation   text NOT NULL,
    environment text NOT NULL,
    status      text NOT NULL,
    error       text,
    node        text                              -- the control node it ran on
);

CREATE FUNCTION remember_end_for_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_ends (run, operation, environment, status, error, node)
    VALUES (NEW.id, NEW.operation, NEW.environment, NEW.status, NEW.error, NEW.node);
    RETURN NULL;
END $$;

CREATE TRIGGER runs_end_to_audit AFTER UPDATE OF finished_at ON runs FOR EACH ROW
    WHEN (OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL)
    EXECUTE FUNCTION remember_end_for_audit();

-- Keys are files; what is here tells a lost or different one from the one that was used.
CREATE TABLE keys (
    name        text NOT NULL,                    -- sealing.key, audit.key
    fingerprint text NOT NULL,
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    position    bigint GENERATED ALWAYS AS IDENTITY,  -- the newest of a name is the one in use
    PRIMARY KEY (name, fingerprint)
);
