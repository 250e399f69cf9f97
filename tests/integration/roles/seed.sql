-- Users with policies and claims whose every rule holds, all made some days ago; and one job that waits.
INSERT INTO users (email, name, created_at)
SELECT 'user' || i || '@bazaruto.example', 'User ' || i, now() - interval '9 days' FROM generate_series(1, 300) AS i;

INSERT INTO policies (user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on, created_at, updated_at)
SELECT id, 'motor', 1000000, 500, 'EUR', current_date - 8, current_date + 300, now() - interval '8 days',
       now() - interval '8 days'
  FROM users;
UPDATE policies SET status = 'active', updated_at = now() - interval '7 days';

INSERT INTO claims (policy_id, amount_minor, currency, incident_on, description, created_at, updated_at)
SELECT id, 1000, 'EUR', current_date - 6, 'dent ' || gen_random_uuid(), now() - interval '5 days', now() - interval '5 days'
  FROM policies, generate_series(1, 2);
UPDATE claims SET status = 'in_review' WHERE right(number, 1) = '7';

INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES ('default', 'some_task', '{}');
