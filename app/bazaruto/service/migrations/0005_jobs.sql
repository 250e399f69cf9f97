-- What became of jobs: why they failed, how many and how long; and holding a restored database's queue.

CREATE TABLE job_failures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES procrastinate_jobs ON DELETE CASCADE,
    attempt integer NOT NULL,
    error text NOT NULL, -- the exception's class and first line, without data of persons
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_failures_error_length CHECK (char_length(error) BETWEEN 1 AND 1000)
);

CREATE INDEX job_failures_of_job ON job_failures (job_id, id DESC);
CREATE INDEX procrastinate_jobs_failed ON procrastinate_jobs (id DESC) WHERE status = 'failed';

-- Counters that only grow; the same from every instance, and with the outcome in one transaction.
CREATE TABLE job_statistics (
    task_name text NOT NULL,
    outcome text NOT NULL, -- succeeded, failed, aborted, retried (back in the queue)
    jobs bigint NOT NULL DEFAULT 0,
    seconds double precision NOT NULL DEFAULT 0,
    buckets bigint[] NOT NULL, -- jobs that took at most job_duration_bounds()[i] seconds
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_name, outcome)
) WITH (fillfactor = 50);

CREATE FUNCTION job_duration_bounds() RETURNS double precision[] LANGUAGE sql IMMUTABLE AS $$
    SELECT ARRAY[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]::double precision[]
$$;

CREATE FUNCTION job_statistics_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    started timestamptz;
    took double precision;
BEGIN
    SELECT max(at) INTO started FROM procrastinate_events WHERE job_id = NEW.id AND type = 'started';
    took := greatest(0, extract(epoch FROM clock_timestamp() - coalesce(started, clock_timestamp())));
    INSERT INTO job_statistics AS known (task_name, outcome, jobs, seconds, buckets)
    SELECT NEW.task_name,
           CASE NEW.status WHEN 'todo' THEN 'retried' ELSE NEW.status::text END,
           1,
           took,
           array_agg(CASE WHEN took <= bound THEN 1 ELSE 0 END ORDER BY place)
      FROM unnest(job_duration_bounds()) WITH ORDINALITY AS bounds (bound, place)
    ON CONFLICT (task_name, outcome) DO UPDATE SET
        jobs = known.jobs + 1,
        seconds = known.seconds + took,
        buckets = (
            SELECT array_agg(so_far + this_one ORDER BY place)
              FROM unnest(known.buckets, excluded.buckets) WITH ORDINALITY AS counts (so_far, this_one, place)
        );
    RETURN NULL;
END;
$$;

-- A job taken from a dead worker (worker_id emptied) or held after a restore was not processed: not counted.
CREATE TRIGGER job_statistics_count AFTER UPDATE OF status ON procrastinate_jobs
    FOR EACH ROW
    WHEN (
        OLD.status = 'doing'
        AND NEW.status IN ('todo', 'succeeded', 'failed', 'aborted')
        AND NOT (NEW.status = 'todo' AND NEW.worker_id IS NULL)
    )
    EXECUTE FUNCTION job_statistics_count();

-- A restored database brings back its old queue: nothing of it may run until someone decides.
CREATE FUNCTION hold_jobs() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    moved bigint;
BEGIN
    UPDATE procrastinate_jobs
       SET status = 'todo',
           queue_name = 'held:' || queue_name,
           queueing_lock = NULL,
           abort_requested = false,
           worker_id = NULL
     WHERE status IN ('todo', 'doing') AND queue_name NOT LIKE 'held:%';
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END;
$$;

CREATE FUNCTION release_jobs() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    moved bigint;
BEGIN
    UPDATE procrastinate_jobs
       SET queue_name = substr(queue_name, length('held:') + 1)
     WHERE status = 'todo' AND queue_name LIKE 'held:%';
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END;
$$;

-- Dropped jobs are cancelled, not deleted: what was decided stays to be seen.
CREATE FUNCTION drop_held_jobs() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    moved bigint;
BEGIN
    UPDATE procrastinate_jobs
       SET status = 'cancelled'
     WHERE status = 'todo' AND queue_name LIKE 'held:%';
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved;
END;
$$;
