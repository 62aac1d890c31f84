"""The peers: each in a process and an environment of its own, for they disagree on SQLAlchemy and on psycopg."""
