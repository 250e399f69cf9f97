-- Claims: submitted → in_review → approved or rejected; approved → paid; each step leaves a history row.

CREATE SEQUENCE claim_numbers;

CREATE TABLE claims (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number text NOT NULL DEFAULT 'CLM-' || lpad(nextval('claim_numbers')::text, 10, '0'),
    policy_id uuid NOT NULL CONSTRAINT claims_policy_exists REFERENCES policies,
    amount_minor bigint NOT NULL,
    currency text NOT NULL,
    incident_on date NOT NULL,
    description text NOT NULL,
    status text NOT NULL DEFAULT 'submitted',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT claims_number_unique UNIQUE (number),
    CONSTRAINT claims_number_form CHECK (number ~ '^CLM-[0-9]{10,}$'),
    CONSTRAINT claims_amount_range CHECK (amount_minor BETWEEN 1 AND 1000000000000000),
    CONSTRAINT claims_currency_form CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT claims_incident_not_in_future CHECK (incident_on <= (created_at AT TIME ZONE 'UTC')::date),
    CONSTRAINT claims_description_length CHECK (char_length(description) BETWEEN 1 AND 4000),
    CONSTRAINT claims_status_known CHECK (
        status IN ('submitted', 'in_review', 'approved', 'rejected', 'paid')
    )
);

CREATE INDEX idx_claims_status ON claims (status);
CREATE INDEX claims_of_policy ON claims (policy_id);
CREATE INDEX claims_newest ON claims (created_at DESC, id DESC);

CREATE TABLE claim_history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    claim_id uuid NOT NULL CONSTRAINT claim_history_claim_exists REFERENCES claims,
    from_status text, -- NULL: the claim was submitted
    to_status text NOT NULL,
    changed_by uuid CONSTRAINT claim_history_user_exists REFERENCES users, -- NULL: no person, see via
    via text NOT NULL, -- 'api', 'job:NAME', 'demo', or 'sql:ROLE' for a hand in the database
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT claim_history_reason_length CHECK (char_length(reason) BETWEEN 1 AND 1000)
);

CREATE INDEX claim_history_of_claim ON claim_history (claim_id, id);
CREATE INDEX claim_history_of_user ON claim_history (changed_by) WHERE changed_by IS NOT NULL;

CREATE FUNCTION claims_keep_their_rules() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    policy policies%ROWTYPE;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.updated_at = OLD.updated_at THEN
            NEW.updated_at := now();
        END IF;
        IF (OLD.id, OLD.number, OLD.policy_id, OLD.amount_minor, OLD.currency, OLD.incident_on, OLD.created_at)
            IS DISTINCT FROM
            (NEW.id, NEW.number, NEW.policy_id, NEW.amount_minor, NEW.currency, NEW.incident_on, NEW.created_at)
        THEN
            RAISE EXCEPTION 'claim % was submitted, what it claims is fixed', OLD.number
                USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_are_fixed';
        END IF;
        IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN (
            ('submitted', 'in_review'), ('in_review', 'approved'), ('in_review', 'rejected'), ('approved', 'paid')
        ) THEN
            RAISE EXCEPTION 'claim % cannot go from % to %', OLD.number, OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_transition';
        END IF;
        RETURN NEW;
    END IF;

    IF NEW.status <> 'submitted' THEN
        RAISE EXCEPTION 'a claim begins as submitted, not as %', NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_begin_as_submitted';
    END IF;
    -- Locked, so that its status cannot change before this claim is there; its terms are fixed anyway.
    SELECT * INTO policy FROM policies WHERE id = NEW.policy_id FOR SHARE;
    IF NOT FOUND THEN
        RETURN NEW; -- the foreign key refuses it, by its own name
    END IF;
    IF policy.status NOT IN ('active', 'lapsed') THEN
        RAISE EXCEPTION 'policy % is %, nothing can be claimed on it', policy.number, policy.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_policy_in_force';
    END IF;
    IF NEW.currency <> policy.currency THEN
        RAISE EXCEPTION 'policy % is in %, not in %', policy.number, policy.currency, NEW.currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_currency_of_policy';
    END IF;
    IF NEW.amount_minor > policy.coverage_minor THEN
        RAISE EXCEPTION 'policy % covers %, not %', policy.number, policy.coverage_minor, NEW.amount_minor
            USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_amount_within_coverage';
    END IF;
    IF NEW.incident_on NOT BETWEEN policy.starts_on AND policy.ends_on THEN
        RAISE EXCEPTION 'policy % runs from % to %, the incident was on %',
            policy.number, policy.starts_on, policy.ends_on, NEW.incident_on
            USING ERRCODE = 'check_violation', CONSTRAINT = 'claims_incident_within_term';
    END IF;
    RETURN NEW;
END;
$$;

CREATE TRIGGER claims_keep_their_rules BEFORE INSERT OR UPDATE ON claims
    FOR EACH ROW EXECUTE FUNCTION claims_keep_their_rules();

-- Who and why come from the transaction: set_config('bazaruto.changed_by' | 'bazaruto.via' | 'bazaruto.reason').
CREATE FUNCTION claims_write_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.status = OLD.status THEN
        RETURN NULL;
    END IF;
    INSERT INTO claim_history (claim_id, from_status, to_status, changed_by, via, reason, created_at)
    VALUES (
        NEW.id,
        CASE TG_OP WHEN 'UPDATE' THEN OLD.status END,
        NEW.status,
        nullif(current_setting('bazaruto.changed_by', true), '')::uuid,
        coalesce(nullif(current_setting('bazaruto.via', true), ''), 'sql:' || session_user),
        nullif(current_setting('bazaruto.reason', true), ''),
        NEW.updated_at
    );
    RETURN NULL;
END;
$$;

CREATE TRIGGER claims_write_history AFTER INSERT OR UPDATE OF status ON claims
    FOR EACH ROW EXECUTE FUNCTION claims_write_history();

CREATE FUNCTION claim_history_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history of claims is only ever added to'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'claim_history_is_append_only';
END;
$$;

CREATE TRIGGER claim_history_is_append_only BEFORE UPDATE OR DELETE ON claim_history
    FOR EACH ROW EXECUTE FUNCTION claim_history_is_append_only();
