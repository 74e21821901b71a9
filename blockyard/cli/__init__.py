"""The command line: one module a noun, speaking only REST (``client``); ``output`` draws, ``secrets`` reads secrets."""
