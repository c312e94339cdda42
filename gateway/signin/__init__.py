"""Signing in here: accounts, the authorization server for clients, and its pages.

Knows people, clients and grants; what a token opens is `gateway.auth`'s and policy's."""
