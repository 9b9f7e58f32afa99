"""Plans, runs and data in every state, made without running anything."""
