-- Webhooks: who is told of what, and what became of each delivery.

CREATE TABLE webhooks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    url text NOT NULL,
    events text[] NOT NULL,
    secret text NOT NULL, -- signs deliveries, so it cannot be hashed; shown once, logged never
    created_by uuid REFERENCES users ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhooks_url_form CHECK (char_length(url) <= 2000 AND url ~ '^https?://'),
    CONSTRAINT webhooks_events_known CHECK (
        cardinality(events) >= 1
        AND events <@ ARRAY['claim.submitted', 'claim.approved', 'claim.rejected', 'claim.paid']
    ),
    CONSTRAINT webhooks_secret_length CHECK (char_length(secret) >= 32)
);

CREATE INDEX webhooks_newest ON webhooks (created_at DESC, id DESC);

CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), -- also sent, so that a receiver can tell repetitions
    webhook_id uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    event text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'pending',
    attempts integer NOT NULL DEFAULT 0,
    last_status integer, -- the receiver's last answer
    last_error text,
    delivered_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_deliveries_status_known CHECK (status IN ('pending', 'delivered', 'failed'))
);

CREATE INDEX webhook_deliveries_of_webhook ON webhook_deliveries (webhook_id, created_at DESC, id DESC);
