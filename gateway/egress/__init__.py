"""Egress: which addresses a server may reach, and the filter that is its only way out.

`rules`, `dns`, `sniff` and `proxy` run inside of the filter's container: standard library only, from Python 3.10 on."""
