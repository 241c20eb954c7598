"""Ids, catalog entries and the records inside sealed objects. Imports nothing but the errors."""
