"""`ibex-db demo`: a corpus in, searches out, and a proof that organizations cannot reach each other.

`claim` is what everything rests on: a statement, whether it holds, and what
shows it.  `lines` reads files, `corpus` and `questions` make sense of
them; `storing`, `searching` and `scenes` act on a database; `isolation` proves
the walls, on `roads` of `attempts` that a `trial` judges; `story` plays it all
in order.  `report` is the result, and `rendering` alone knows of a terminal.
"""

from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.isolation import prove_isolation

__all__ = ["Claim", "prove_isolation"]
