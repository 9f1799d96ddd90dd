"""Configuration, errors, hashing, face labels and precision. Imports nothing else of raygen."""
