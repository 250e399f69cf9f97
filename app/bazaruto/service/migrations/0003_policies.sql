-- Policies: draft → active → lapsed or canceled; their terms are fixed once they leave draft.

CREATE SEQUENCE policy_numbers;

CREATE TABLE policies (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number text NOT NULL DEFAULT 'POL-' || lpad(nextval('policy_numbers')::text, 10, '0'),
    user_id uuid NOT NULL CONSTRAINT policies_user_exists REFERENCES users,
    product text NOT NULL,
    coverage_minor bigint NOT NULL, -- cents, yen, ... : the currency's smallest unit
    premium_minor bigint NOT NULL,
    currency text NOT NULL, -- ISO 4217
    starts_on date NOT NULL, -- first and last day of the term, both inside it
    ends_on date NOT NULL,
    status text NOT NULL DEFAULT 'draft',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT policies_number_unique UNIQUE (number),
    CONSTRAINT policies_number_form CHECK (number ~ '^POL-[0-9]{10,}$'),
    CONSTRAINT policies_product_known CHECK (product IN ('motor', 'home', 'health', 'travel', 'life')),
    CONSTRAINT policies_coverage_range CHECK (coverage_minor BETWEEN 1 AND 1000000000000000),
    CONSTRAINT policies_premium_range CHECK (premium_minor BETWEEN 1 AND 1000000000000000),
    CONSTRAINT policies_premium_within_coverage CHECK (premium_minor <= coverage_minor),
    CONSTRAINT policies_currency_form CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT policies_term_order CHECK (starts_on <= ends_on),
    CONSTRAINT policies_term_range CHECK (starts_on >= '1970-01-01' AND ends_on <= '2199-12-31'),
    CONSTRAINT policies_status_known CHECK (status IN ('draft', 'active', 'lapsed', 'canceled'))
);

CREATE INDEX idx_policies_user_id ON policies (user_id);
CREATE INDEX policies_newest ON policies (created_at DESC, id DESC);
CREATE INDEX policies_active_by_end ON policies (ends_on) WHERE status = 'active';

CREATE FUNCTION policies_keep_their_rules() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    today date := (NEW.updated_at AT TIME ZONE 'UTC')::date;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'draft' THEN
            RAISE EXCEPTION 'a policy begins as a draft, not as %', NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'policies_begin_as_draft';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := now();
        today := (NEW.updated_at AT TIME ZONE 'UTC')::date;
    END IF;
    IF OLD.status <> 'draft' AND (
        OLD.number, OLD.user_id, OLD.product, OLD.coverage_minor, OLD.premium_minor,
        OLD.currency, OLD.starts_on, OLD.ends_on
    ) IS DISTINCT FROM (
        NEW.number, NEW.user_id, NEW.product, NEW.coverage_minor, NEW.premium_minor,
        NEW.currency, NEW.starts_on, NEW.ends_on
    ) THEN
        RAISE EXCEPTION 'the terms of policy % are fixed since it left draft', OLD.number
            USING ERRCODE = 'check_violation', CONSTRAINT = 'policies_terms_are_fixed';
    END IF;
    IF NEW.status = OLD.status THEN
        RETURN NEW;
    END IF;
    IF (OLD.status, NEW.status) NOT IN (('draft', 'active'), ('active', 'lapsed'), ('active', 'canceled')) THEN
        RAISE EXCEPTION 'policy % cannot go from % to %', OLD.number, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'policies_transition';
    END IF;
    IF NEW.status = 'active' AND NEW.ends_on < today THEN
        RAISE EXCEPTION 'policy % ended on %, it cannot become active', OLD.number, NEW.ends_on
            USING ERRCODE = 'check_violation', CONSTRAINT = 'policies_activate_before_end';
    END IF;
    IF NEW.status = 'lapsed' AND NEW.ends_on >= today THEN
        RAISE EXCEPTION 'policy % runs until %, it cannot lapse before', OLD.number, NEW.ends_on
            USING ERRCODE = 'check_violation', CONSTRAINT = 'policies_lapse_after_end';
    END IF;
    RETURN NEW;
END;
$$;

CREATE TRIGGER policies_keep_their_rules BEFORE INSERT OR UPDATE ON policies
    FOR EACH ROW EXECUTE FUNCTION policies_keep_their_rules();
