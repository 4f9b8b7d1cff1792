"""The Hub: pushing pipelines and adapters, loading one commit, and checking what was downloaded."""
