"""Hostile input: what somebody would send who wants in, or wants something lost (docs/security.md)."""
