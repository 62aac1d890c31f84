"""One database over many machines: the schema on Citus, distributed by organization."""

from ibex_db_core.distribution.steps import Step, distribute, plan
from ibex_db_core.distribution.verify import complaints

__all__ = ["Step", "complaints", "distribute", "plan"]
