"""Record batches in, files in place out; or messages."""
