"""Rationales from a teacher, for rows that have none."""
