"""The download stage: downloads, hashes and verifies shards, and extracts them as they arrive.

``stage`` runs it over many shards at once; ``shard`` downloads one of them, or hashes
files that are on disk already; ``temporary_space`` deletes archives that are extracted, and
enforces a limit on those that are stored at a time.
"""
