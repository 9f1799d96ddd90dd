"""Bytes and tables on disk: file systems, Parquet, pictures, the commit protocol, weight files."""
