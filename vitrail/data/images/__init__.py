"""Images: files to pixels, and everything that happens to pixels before the model sees them."""
