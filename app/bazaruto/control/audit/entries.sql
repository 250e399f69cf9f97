-- name: page_of_entries, newest first, before one
SELECT seq, at, node, actor, token, address, request_id, action, target, environment, operation,
       parameters::text AS parameters, outcome, detail, key, previous, mac
FROM audit_entries
WHERE seq < %(before)s
  AND (%(actor)s::text IS NULL OR actor = %(actor)s)
  AND (%(action)s::text IS NULL OR action = %(action)s)
  AND (%(run)s::text IS NULL OR target = %(run)s)
  AND (%(environment)s::text IS NULL OR environment = %(environment)s)
  AND (%(environments)s::text[] = '{}' OR environment = ANY (%(environments)s::text[]))
  AND (%(operations)s::text[] = '{}' OR operation = ANY (%(operations)s::text[]))
ORDER BY seq DESC LIMIT %(limit)s;

-- name: entries_to_export, oldest first, after one
SELECT seq, at, node, actor, token, address, request_id, action, target, environment, operation,
       parameters::text AS parameters, outcome, detail, key, previous, mac
FROM audit_entries
WHERE seq > %(after)s
  AND (%(environments)s::text[] = '{}' OR environment = ANY (%(environments)s::text[]))
  AND (%(operations)s::text[] = '{}' OR operation = ANY (%(operations)s::text[]))
ORDER BY seq LIMIT %(limit)s;

-- name: one_entry
SELECT seq, at, node, actor, token, address, request_id, action, target, environment, operation,
       parameters::text AS parameters, outcome, detail, key, previous, mac
FROM audit_entries WHERE seq = %(seq)s;
