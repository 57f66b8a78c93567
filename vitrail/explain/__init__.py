"""What a Vision Transformer looks at: attention, relevance for a class, tokens, and how faithful a map is.

docs/explain.md has the commands and the calls from Python. Nothing here changes a model or its fast path.
"""
