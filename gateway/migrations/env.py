"""What Alembic runs: the migrations in `versions`, on the connection that `gateway.database` hands over."""

from alembic import context

from gateway.database import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
