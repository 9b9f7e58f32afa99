"""The download stage: every shard here, hashed and verified, extracted as it arrives if it can be.

``stage`` runs it over many shards at once; ``shard`` is one of them; ``hashing`` reads files that
are here already and sees them change.
"""
