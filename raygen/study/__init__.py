"""Preference studies: pages on which people choose between pictures, and the evaluation of their answers."""
