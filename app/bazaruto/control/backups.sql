-- name: runs_within, of these those that were in one of these environments
SELECT id FROM runs WHERE id = ANY (%(ids)s::text[]) AND environment = ANY (%(environments)s::text[]);
