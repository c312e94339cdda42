"""Catalogues and profiles in container registries: as artifacts that are pushed, signed, verified and pulled.

Knows registries and files; what a valid catalogue is, the catalog room says."""
