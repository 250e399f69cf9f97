-- Plans, and their approval by another person.
-- Columns are added with defaults, and one rule is dropped: processes of the version before go on.

ALTER TABLE runs
    ADD COLUMN approval            text CHECK (approval IN ('planning', 'pending', 'confirming', 'granted', 'rejected')),
    ADD COLUMN plan_for            text,              -- of a plan: the run it foresees. Runs of a plan are named without
    ADD COLUMN plan_run            text,              -- references, since `reindex` enters either of them first
    ADD COLUMN confirming_run      text,              -- the second plan, made after the approval
    ADD COLUMN plan                json,              -- what would change, bounded; its digest covers all of it
    ADD COLUMN approval_expires_at timestamptz,       -- until when the run must have started
    ADD COLUMN approved_at         timestamptz,
    ADD COLUMN approved_by         text,
    ADD COLUMN approve_reason      text,
    ADD COLUMN rejected_by         text,              -- NULL: nobody; it expired, or something had changed
    ADD COLUMN reject_reason       text,
    DROP CONSTRAINT runs_check;                       -- what waits, waits for another run: or for an approval

CREATE INDEX runs_for_approval ON runs (approval) WHERE approval IS NOT NULL AND finished_at IS NULL;

-- Whoever claims runs, and of whatever version: an update that would start one without its approval does nothing.
CREATE FUNCTION pass_over_unapproved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;

CREATE TRIGGER runs_start_with_approval_only BEFORE UPDATE OF status ON runs FOR EACH ROW
    WHEN (NEW.status = 'running' AND OLD.status <> 'running' AND NEW.approval <> 'granted')
    EXECUTE FUNCTION pass_over_unapproved();

-- What goes before a run: the one that runs, those accepted before it, and one that was approved and is about to be
-- queued, since its plan holds only as long as nothing else changes. What waits for an approval goes before nobody.
CREATE FUNCTION goes_before(r runs) RETURNS SETOF runs LANGUAGE sql STABLE AS $$
    SELECT o.* FROM runs o
    WHERE o.environment = r.environment AND o.exclusion = r.exclusion AND o.id <> r.id
      AND (o.status = 'running'
           OR (o.status IN ('queued', 'waiting') AND o.position < r.position
               AND coalesce(o.approval, 'granted') = 'granted')
           OR (o.status = 'waiting' AND o.approval = 'confirming'
               AND EXISTS (SELECT FROM runs p WHERE p.id = o.confirming_run AND p.finished_at IS NOT NULL)))
$$;
