"""The download stage: every shard here, hashed and verified, extracted as it arrives if it can be.

``stage`` runs it over many shards at once; ``shard`` is one of them; ``temporary_space`` keeps a
limit on the archives that are stored at a time; ``hashing`` reads files that are here already and
sees them change.
"""
