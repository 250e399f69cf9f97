-- What cancel, retry, recovery, content that cannot change, and several nodes need.
-- Columns are added with defaults only: processes of the version before go on.

ALTER TABLE runs
    ADD COLUMN waiting_reason       text,             -- the sentence, while it waits
    ADD COLUMN retry_of             text REFERENCES runs ON DELETE SET NULL,
    ADD COLUMN revision             text,             -- commit of the content it runs; NULL: from no checkout
    ADD COLUMN dirty                boolean NOT NULL DEFAULT false,  -- the content differs from that commit
    ADD COLUMN content_digest       text,             -- of the snapshot it runs from
    ADD COLUMN idle_timeout_seconds double precision CHECK (idle_timeout_seconds > 0),
    ADD COLUMN tolerates            text[] NOT NULL DEFAULT '{}',    -- what is no failure of this operation
    ADD COLUMN cancel_requested_at  timestamptz,
    ADD COLUMN cancel_requested_by  text,
    ADD COLUMN cancel_reason        text,
    ADD COLUMN left_running         text[] NOT NULL DEFAULT '{}',    -- hosts that may still be at work for it
    ADD COLUMN waived_at            timestamptz,      -- since when left_running stands in nobody's way
    ADD COLUMN waived_by            text,
    ADD COLUMN waive_reason         text,
    ADD CHECK ((waived_at IS NULL) = (waive_reason IS NULL));

CREATE INDEX runs_left_running ON runs (environment) WHERE left_running <> '{}' AND waived_at IS NULL;
CREATE INDEX runs_of_a_node ON runs (node, position) WHERE status = 'running';

CREATE FUNCTION refuse_another_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'run % has ended as %, which never changes', OLD.id, OLD.status;
END $$;

CREATE TRIGGER runs_end_once BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (OLD.finished_at IS NOT NULL AND NEW.status IS DISTINCT FROM OLD.status)
    EXECUTE FUNCTION refuse_another_end();

-- A launch that is sent again is the same launch. Keys belong to whoever sent them.
CREATE TABLE idempotency_keys (
    requested_by text NOT NULL,
    key          text NOT NULL,
    fingerprint  bytea NOT NULL,                      -- HMAC of the request: same key and other body is refused
    run          text NOT NULL REFERENCES runs ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (requested_by, key)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Who works, for people and health checks. Nothing that is true of a run is decided by it.
CREATE TABLE workers (
    id           text PRIMARY KEY,                    -- of one process
    node         text NOT NULL,
    environments text[] NOT NULL,                     -- empty: every one
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
