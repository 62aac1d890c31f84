"""`python -m ibex_db_core.cli`."""

from ibex_db_core.cli import main

main()
