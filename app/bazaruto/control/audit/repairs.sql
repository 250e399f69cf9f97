-- name: macs, of all entries
SELECT seq, mac FROM audit_entries;

-- name: last_replacement, of the audit's key
SELECT parameters::text AS parameters FROM audit_entries
WHERE action = 'key.replace' AND target = 'audit.key' AND outcome = 'accepted' ORDER BY seq DESC LIMIT 1;
