"""One database over many machines: the schema on Citus, distributed by organization."""

from ibex_db_core.distribution.steps import Step, distribute, plan
from ibex_db_core.distribution.verify import Difference, complaints, differences

__all__ = ["Difference", "Step", "complaints", "differences", "distribute", "plan"]
