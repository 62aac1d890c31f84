"""Faults that people make on a live database, each as the SQL that makes it and what the doctor says of it."""

from faults.drift import DRIFT
from faults.fault import Fault, spoken_since
from faults.functions import FUNCTIONS
from faults.grants import GRANTS
from faults.keys import KEYS
from faults.policies import POLICIES
from faults.roles import ROLES
from faults.server import SERVER
from faults.signing import SIGNING
from faults.storage import STORAGE
from faults.tables import TABLES
from faults.triggers import TRIGGERS
from faults.views import VIEWS

__all__ = ["FAULTS", "Fault", "spoken_since"]

FAULTS = [
    *TABLES,
    *SIGNING,
    *POLICIES,
    *GRANTS,
    *KEYS,
    *TRIGGERS,
    *FUNCTIONS,
    *VIEWS,
    *ROLES,
    *SERVER,
    *STORAGE,
    *DRIFT,
]
