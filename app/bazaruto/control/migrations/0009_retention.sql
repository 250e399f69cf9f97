-- What retention needs: whether a run's events were let go, days whose partition is to be rewritten, and indexes
-- without which each removed run would have the others read for references to it.

ALTER TABLE runs ADD COLUMN events_removed_at timestamptz;  -- since when its events and output are gone

CREATE TABLE events_to_rewrite (
    day      date PRIMARY KEY,
    removed  bigint NOT NULL                      -- events deleted since the day's partition was written anew
);

CREATE INDEX runs_retries ON runs (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX runs_waiting_for ON runs (waiting_for) WHERE waiting_for IS NOT NULL;
CREATE INDEX idempotency_keys_of_a_run ON idempotency_keys (run);
