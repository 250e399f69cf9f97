-- name: defer_job
-- Put one job into the queue, in the caller's transaction.
SELECT unnest(procrastinate_defer_jobs_v1(ARRAY[
    ROW(%(queue)s, %(task)s, 0, NULL, NULL, %(args)s::jsonb, NULL)
]::procrastinate_job_to_defer_v1[])) AS id;

-- name: record_failure
-- Remember why an attempt failed.
INSERT INTO job_failures (job_id, attempt, error)
SELECT %(job_id)s, %(attempt)s, %(error)s
 WHERE EXISTS (SELECT FROM procrastinate_jobs WHERE id = %(job_id)s);

-- name: take_from_dead_workers
-- Put the jobs of workers without a heartbeat, and those named, back into the queue; give up after too many attempts.
WITH lost AS (
    SELECT jobs.id, jobs.attempts + 1 AS attempts
      FROM procrastinate_jobs AS jobs
      LEFT JOIN procrastinate_workers AS workers ON workers.id = jobs.worker_id
     WHERE jobs.status = 'doing'
       AND (workers.id IS NULL
            OR workers.last_heartbeat < now() - make_interval(secs => %(dead_after)s)
            OR jobs.id = ANY(%(lost)s::bigint[]))
       FOR UPDATE OF jobs SKIP LOCKED
), told AS (
    INSERT INTO job_failures (job_id, attempt, error)
    SELECT id, attempts, 'WorkerDied: its worker stopped without finishing it' FROM lost
)
UPDATE procrastinate_jobs AS jobs
   SET status = CASE WHEN lost.attempts >= %(max_attempts)s THEN 'failed' ELSE 'todo' END::procrastinate_job_status,
       attempts = lost.attempts,
       abort_requested = false,
       queueing_lock = NULL,
       worker_id = NULL
  FROM lost
 WHERE jobs.id = lost.id
RETURNING jobs.id, jobs.task_name, jobs.status::text AS status;

-- name: jobs_of_worker
-- What a worker has taken, as the database sees it.
SELECT id FROM procrastinate_jobs WHERE status = 'doing' AND worker_id = %(id)s;

-- name: forget_dead_workers
-- Remove workers without a heartbeat.
DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(dead_after)s);

-- name: keep_worker
-- Put a living worker back that another one took for dead while it was frozen.
INSERT INTO procrastinate_workers (id) OVERRIDING SYSTEM VALUE VALUES (%(id)s)
ON CONFLICT (id) DO NOTHING;

-- name: queue_summary
-- The queue by state, what is held, the age of the oldest job that could run, and the workers alive.
SELECT (SELECT coalesce(jsonb_object_agg(status, jobs), '{}'::jsonb)
          FROM (SELECT status::text AS status, count(*) AS jobs
                  FROM procrastinate_jobs
                 WHERE queue_name NOT LIKE 'held:%%'
                 GROUP BY 1) AS by_state) AS states,
       (SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo' AND queue_name LIKE 'held:%%') AS held,
       (SELECT extract(epoch FROM now() - min(greatest(jobs.scheduled_at, (
                   SELECT min(events.at) FROM procrastinate_events AS events WHERE events.job_id = jobs.id
               ))))
          FROM procrastinate_jobs AS jobs
         WHERE jobs.status = 'todo' AND jobs.queue_name NOT LIKE 'held:%%'
           AND (jobs.scheduled_at IS NULL OR jobs.scheduled_at <= now())) AS oldest_seconds,
       (SELECT count(*) FROM procrastinate_workers
         WHERE last_heartbeat >= now() - make_interval(secs => %(dead_after)s)) AS workers;

-- name: queue_sizes
-- Jobs that wait to run, and jobs that are held.
SELECT count(*) FILTER (WHERE queue_name NOT LIKE 'held:%%') AS waiting,
       count(*) FILTER (WHERE queue_name LIKE 'held:%%') AS held
  FROM procrastinate_jobs
 WHERE status = 'todo';

-- name: statistics
-- Counters and durations of every task so far.
SELECT task_name, outcome, jobs, seconds, buckets, job_duration_bounds() AS bounds
  FROM job_statistics
 ORDER BY task_name, outcome;

-- name: list_failed
-- A page of failed jobs with their last error, newest first.
SELECT jobs.id, jobs.task_name AS task, jobs.queue_name AS queue, jobs.args, jobs.attempts,
       failure.error, failure.created_at AS failed_at
  FROM procrastinate_jobs AS jobs
  LEFT JOIN LATERAL (
       SELECT error, created_at FROM job_failures WHERE job_id = jobs.id ORDER BY id DESC LIMIT 1
  ) AS failure ON true
 WHERE jobs.status = 'failed'
   AND (%(before_id)s::bigint IS NULL OR jobs.id < %(before_id)s::bigint)
 ORDER BY jobs.id DESC
 LIMIT %(limit)s;

-- name: retry_failed
-- Put a failed job back into the queue as if it were new; no row: there is no such failed job.
UPDATE procrastinate_jobs
   SET status = 'todo', attempts = 0, scheduled_at = NULL, worker_id = NULL
 WHERE id = %(id)s AND status = 'failed'
RETURNING id, task_name AS task, queue_name AS queue;

-- name: hold
-- Hold every job that could run.
SELECT hold_jobs() AS jobs;

-- name: release
-- Let held jobs run.
SELECT release_jobs() AS jobs;

-- name: drop_held
-- Cancel held jobs.
SELECT drop_held_jobs() AS jobs;

-- name: count_held
-- Held jobs by task.
SELECT task_name AS task, count(*) AS jobs
  FROM procrastinate_jobs
 WHERE status = 'todo' AND queue_name LIKE 'held:%%'
 GROUP BY task_name
 ORDER BY task_name;

-- name: delete_old
-- Delete finished jobs that ended more than so many days ago; failed ones are kept for someone to see.
DELETE FROM procrastinate_jobs AS jobs
 WHERE jobs.status IN ('succeeded', 'cancelled', 'aborted')
   AND NOT EXISTS (
       SELECT FROM procrastinate_events AS events
        WHERE events.job_id = jobs.id AND events.at > now() - make_interval(days => %(days)s)
   );

-- name: job_exists
-- Whether there is such a job, in any state.
SELECT id FROM procrastinate_jobs WHERE id = %(id)s;
