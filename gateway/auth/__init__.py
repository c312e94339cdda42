"""Who is calling: API keys, tokens of providers that are trusted, and what is refused before anything is read.

Knows requests and credentials; not what a caller may do with servers, which is policy's."""
