"""Where images come from and in which order: sources, decoding, transforms, the loader."""
