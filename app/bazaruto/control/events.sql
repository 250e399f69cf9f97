-- name: make_partition, of a run's day
SELECT make_events_partition(%(day)s);

-- name: last_seq, that PostgreSQL has of a run
SELECT coalesce(max(seq), 0) AS seq FROM events WHERE day = %(day)s AND run = %(run)s;

-- name: copy_events, a batch in one go
COPY events (day, run, seq, body) FROM STDIN;

-- name: page_of_events, after a sequence number
SELECT seq, body::text AS body FROM events
WHERE day = %(day)s AND run = %(run)s AND seq > %(after)s ORDER BY seq LIMIT %(limit)s;

-- name: notify, whoever watches the run, once this transaction is durable
SELECT pg_notify('run_events', %(run)s);
