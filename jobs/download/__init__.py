"""The download stage: downloads, hashes and verifies shards, and extracts them as they arrive.

``stage`` runs it over many shards at once; ``shard`` downloads one of them, or hashes
files that are on disk already; ``temporary_space`` enforces a limit on the archives that are stored
at a time.
"""
