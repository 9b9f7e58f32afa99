"""The download stage: downloads, hashes and verifies shards, and extracts them as they arrive.

``stage`` runs it over many shards at once; ``shard`` downloads one of them; ``hashing`` hashes
files that are on disk already and detects changes.
"""
