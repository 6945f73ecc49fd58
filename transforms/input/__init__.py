"""Files and messages in, tweets out."""
