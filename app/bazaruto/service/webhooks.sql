-- name: insert_webhook
-- Subscribe.
INSERT INTO webhooks (url, events, secret, created_by)
VALUES (%(url)s, %(events)s, %(secret)s, %(created_by)s)
RETURNING id, url, events, created_at;

-- name: list_webhooks
-- A page of subscriptions, newest first, without their secrets.
SELECT id, url, events, created_at
  FROM webhooks
 WHERE (%(before_time)s::timestamptz IS NULL
        OR (created_at, id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;

-- name: delete_webhook
-- Unsubscribe.
DELETE FROM webhooks WHERE id = %(id)s;

-- name: insert_deliveries
-- One delivery for every subscriber of this event.
INSERT INTO webhook_deliveries (webhook_id, event, payload)
SELECT id, %(event)s, %(payload)s
  FROM webhooks
 WHERE %(event)s = ANY(events)
RETURNING id;

-- name: list_deliveries
-- A page of one subscription's deliveries, newest first.
SELECT id, event, status, attempts, last_status, last_error, delivered_at, created_at
  FROM webhook_deliveries
 WHERE webhook_id = %(webhook_id)s
   AND (%(before_time)s::timestamptz IS NULL
        OR (created_at, id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s;

-- name: webhook_exists
-- Whether there is such a subscription.
SELECT id FROM webhooks WHERE id = %(id)s;

-- name: delivery_to_make
-- What is to be sent, to whom, and with which secret.
SELECT deliveries.id, deliveries.event, deliveries.payload, deliveries.status, deliveries.attempts,
       deliveries.created_at, webhooks.url, webhooks.secret
  FROM webhook_deliveries AS deliveries
  JOIN webhooks ON webhooks.id = deliveries.webhook_id
 WHERE deliveries.id = %(id)s;

-- name: record_delivery
-- What became of one attempt.
UPDATE webhook_deliveries
   SET attempts = attempts + 1,
       status = %(status)s,
       last_status = %(last_status)s,
       last_error = %(last_error)s,
       delivered_at = CASE WHEN %(status)s = 'delivered' THEN now() END
 WHERE id = %(id)s AND status = 'pending';
