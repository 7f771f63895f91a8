"""Hostile input: what somebody would send to break in or to destroy something (docs/security.md)."""
