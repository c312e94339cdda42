"""Signing in at the providers of remote servers: each user's own tokens, kept in the vault.

Knows OAuth 2.1 as a client (MCP 2026-07-28, basic/authorization); not the sign-in of callers, which is auth/."""
