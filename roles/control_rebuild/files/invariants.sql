-- The rules of the control plane's own database as questions: each returns what breaks it, so no row means it holds.
-- backup_files is what was packed beside the dump: by its keys files and database are held against each other.

-- name: the_keys_beside_it_are_those_it_was_used_with
SELECT known.name
  FROM (SELECT DISTINCT ON (name) name, fingerprint FROM keys ORDER BY name, position DESC) AS known
  JOIN backup_files AS packed ON packed.name = 'control/' || known.name
 WHERE known.fingerprint <> left(encode(sha256(
           convert_to('fingerprint of a key', 'UTF8') || '\x00'::bytea || btrim(packed.content, '\x090a0d20'::bytea)
       ), 'hex'), 16);

-- name: statuses_of_runs_are_known
SELECT id FROM runs
 WHERE status IS NULL OR status NOT IN ('queued', 'waiting', 'running', 'succeeded', 'failed', 'canceled', 'timed_out',
                                        'interrupted', 'rejected');

-- name: runs_have_ended_when_their_status_says_so
SELECT id FROM runs WHERE (finished_at IS NULL) <> (status IN ('queued', 'waiting', 'running'));

-- name: one_change_runs_at_a_time
SELECT environment FROM runs WHERE status = 'running' AND exclusion IS NOT NULL
 GROUP BY environment, exclusion HAVING count(*) > 1;

-- name: no_variables_of_ended_runs_are_kept
SELECT id FROM runs WHERE finished_at IS NOT NULL AND variables IS NOT NULL;

-- name: every_change_has_a_run
SELECT run FROM run_changes WHERE NOT EXISTS (SELECT FROM runs WHERE runs.id = run_changes.run);

-- name: events_are_numbered_without_gaps
SELECT run FROM events GROUP BY day, run HAVING min(seq) <> 1 OR max(seq) <> count(*);

-- name: tokens_have_a_role_that_is_known
SELECT id FROM access_tokens WHERE role IS NULL OR role NOT IN ('viewer', 'operator', 'approver', 'admin');

-- name: entries_of_the_audit_follow_each_other
SELECT seq
  FROM (SELECT seq, previous, lag(seq) OVER (ORDER BY seq) AS seq_before, lag(mac) OVER (ORDER BY seq) AS mac_before
          FROM audit_entries) AS entries
 WHERE seq_before IS NOT NULL AND (seq <> seq_before + 1 OR previous <> mac_before);

-- name: the_head_of_the_audit_is_its_last_entry
SELECT seq FROM audit_head
 WHERE seq > 0 AND NOT EXISTS (
     SELECT FROM audit_entries WHERE audit_entries.seq = audit_head.seq AND audit_entries.mac = audit_head.mac)
    OR EXISTS (SELECT FROM audit_entries WHERE audit_entries.seq > audit_head.seq);
