"""The vectors of all items, made anew for a new model: to Parquet or PostgreSQL, resumable.

``items`` reads what is to be encoded, ``encoding.encode_corpus`` is the way of it, ``folder`` and
``postgresql`` are where vectors go. Nothing here loads torch before a model is opened.
"""
