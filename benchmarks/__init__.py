"""Measurements, and the programs that make them; nothing here is part of a wheel."""
