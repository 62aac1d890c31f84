"""The doctor: audits a live database, and says for each finding what could happen and what mends it."""

from ibex_db_core.doctor.audit import CHECKS, Audit, examine
from ibex_db_core.doctor.findings import CODES, Finding, Report, Severity
from ibex_db_core.doctor.performance import Limits, checks as performance_checks

__all__ = ["CHECKS", "CODES", "Audit", "Finding", "Limits", "Report", "Severity", "examine", "performance_checks"]
