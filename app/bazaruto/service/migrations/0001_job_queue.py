"""Create procrastinate's tables, from the schema that the installed procrastinate carries.

A later procrastinate needs a migration of its own here, made of the files in its `sql/migrations`; the
test `test_the_queue_schema_is_the_one_the_migration_was_written_for` fails until there is one.
"""

from procrastinate.schema import SchemaManager
from yoyo import step

steps = [step(SchemaManager.get_schema())]
