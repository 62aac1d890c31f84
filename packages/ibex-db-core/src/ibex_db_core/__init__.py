"""Base, engine, tenant context, repository."""
