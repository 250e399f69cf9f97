-- The control plane's own tables: runs, their events, and who may ask.

CREATE TABLE runs (
    id                 text PRIMARY KEY CHECK (id ~ '^\d{8}-\d{6}-[0-9a-f]{6}$'),
    position           bigint GENERATED ALWAYS AS IDENTITY UNIQUE,  -- the order in which runs were accepted
    day                date NOT NULL,             -- of acceptance, in UTC: the partition of its events
    operation          text NOT NULL,
    environment        text NOT NULL,
    effect             text NOT NULL CHECK (effect IN ('read', 'change', 'destroy')),
    exclusion          text,                      -- runs of one kind in one environment exclude each other; NULL: none
    status             text NOT NULL CHECK (status IN ('queued', 'waiting', 'running', 'succeeded', 'failed',
                                                       'canceled', 'timed_out', 'interrupted', 'rejected')),
    waiting_for        text REFERENCES runs,      -- the run that must end before this one starts
    parameters         json NOT NULL,             -- as given; secrets as "***"
    variables          bytea,                     -- the same as role variables, sealed; removed at the start
    secret_variables   text[] NOT NULL DEFAULT '{}',
    check_mode         boolean NOT NULL,
    diff               boolean NOT NULL,
    host_limit         text,
    reason             text,
    requested_by       text NOT NULL,
    node               text,                      -- the control node whose run directory holds the record
    timeout_seconds    double precision NOT NULL CHECK (timeout_seconds > 0),
    created_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at         timestamptz,
    finished_at        timestamptz,
    result             json,                      -- in the order in which the operation gave it
    hosts              json,                      -- the play's statistics: host → counts
    error              text,
    events             integer NOT NULL DEFAULT 0,
    CHECK ((status = 'waiting') = (waiting_for IS NOT NULL)),
    CHECK ((finished_at IS NOT NULL) = (status NOT IN ('queued', 'waiting', 'running'))),
    CHECK (status <> 'running' OR (node IS NOT NULL AND started_at IS NOT NULL))
);

-- One change at a time in an environment; backups and drills exclude their own kind. No queue decides this.
CREATE UNIQUE INDEX runs_one_at_a_time ON runs (environment, exclusion) WHERE status = 'running';
CREATE INDEX runs_to_start ON runs (environment, exclusion, position) WHERE status IN ('queued', 'waiting', 'running');
CREATE INDEX runs_by_operation ON runs (operation, position);
CREATE INDEX runs_by_status ON runs (status, position);

CREATE TABLE run_changes (
    run        text NOT NULL REFERENCES runs ON DELETE CASCADE,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    status     text NOT NULL,
    reason     text NOT NULL
);

CREATE INDEX run_changes_of_a_run ON run_changes (run, at);

CREATE TABLE run_totals (
    operation  text NOT NULL,
    status     text NOT NULL,
    runs       bigint NOT NULL,
    seconds    double precision NOT NULL,         -- how long they took together
    PRIMARY KEY (operation, status)
);

CREATE TABLE events (
    day        date NOT NULL,                     -- of the run, not of the event: else (run, seq) would not be unique
    run        text NOT NULL,
    seq        integer NOT NULL CHECK (seq > 0),
    body       json NOT NULL,                     -- as the supervisor wrote it
    PRIMARY KEY (day, run, seq)
) PARTITION BY RANGE (day);

CREATE FUNCTION make_events_partition(wanted date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text := 'events_' || to_char(wanted, 'YYYYMMDD');
BEGIN
    IF to_regclass(name) IS NULL THEN
        PERFORM pg_advisory_xact_lock(hashtext('make_events_partition'));
        EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                       name, wanted, wanted + 1);
    END IF;
END $$;

CREATE TABLE access_tokens (
    id         text PRIMARY KEY,                  -- the public half, by which it is found
    name       text NOT NULL,
    role       text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    hash       bytea NOT NULL,                    -- SHA-256 of the secret half, which has 256 random bits
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
